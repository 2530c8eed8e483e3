/** Server-sent events read from a fetch response, as the HTML standard's section 9.2.6 parses them. */

/**
 * Yield the events of a stream, and its comments, as events of the type "comment".
 * @param {ReadableStream<Uint8Array>} body
 * @yields {{type: string, data: string, id: string, raw: string}} `raw` is the event as it came, line by line
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let type = "";
  let id = "";
  let data = [];
  let lines = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      // An event that the end of the stream cuts short is dropped, as the standard says.
      if (done) return;
      rest += value;
      for (;;) {
        const end = rest.search(/[\r\n]/);
        // A CR at the very end may be half of a CRLF: wait for what follows.
        if (end < 0 || (rest[end] === "\r" && end === rest.length - 1)) break;
        const line = rest.slice(0, end);
        rest = rest.slice(rest.startsWith("\r\n", end) ? end + 2 : end + 1);
        if (line === "") {
          const raw = lines.join("\n");
          if (data.length) yield { type: type || "message", data: data.join("\n"), id, raw };
          else if (raw) yield { type: "comment", data: "", id, raw };
          type = "";
          data = [];
          lines = [];
          continue;
        }
        lines.push(line);
        const colon = line.indexOf(":");
        if (colon === 0) continue;
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") data.push(text);
        else if (field === "event") type = text;
        else if (field === "id" && !text.includes("\0")) id = text;
      }
    }
  } finally {
    // Leaving early closes the connection.
    await reader.cancel().catch(() => {});
  }
}
