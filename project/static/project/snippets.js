/** The exact request as something to run: curl, Python with httpx, JavaScript. Text in, text out. */

// The longest argument that a shell can give a program is 128 KiB on Linux.
const MAX_ARGUMENT = 30_000;

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** Return a JSON value as a Python literal. JSON's strings are Python's; its three words are not. */
export function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => python(item, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${python(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  return items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}` : open + close;
}

/**
 * @typedef {object} Request
 * @property {string} url absolute
 * @property {object} body
 * @property {string|null} id of the invocation; null leaves it to the server
 * @property {boolean} signedIn whether the site knows the caller by cookies
 */

function headersOf({ id }) {
  return { "Content-Type": "application/json", ...(id ? { "x-agent-invocation-id": id } : {}) };
}

/** Return the request as a line of a POSIX shell; where cookies are needed they are taken from two variables. */
export function asCurl(request) {
  const json = JSON.stringify(request.body);
  const isLong = json.length > MAX_ARGUMENT;
  const lines = [`curl -sS${request.body.stream ? "N" : ""} ${shell(request.url)}`];
  for (const [name, value] of Object.entries(headersOf(request))) lines.push(`-H ${shell(`${name}: ${value}`)}`);
  if (request.signedIn) lines.push(`-b "sessionid=$SESSIONID; csrftoken=$CSRFTOKEN"`, `-H "X-CSRFToken: $CSRFTOKEN"`);
  // JSON has no line of its own that could end the text early: its line ends are escaped.
  lines.push(isLong ? `--data-binary @- <<'JSON'\n${json}\nJSON` : `-d ${shell(json)}`);
  return lines.join(" \\\n  ");
}

/** Return the request as a Python program with httpx. */
export function asPython(request) {
  const { body, id, url, signedIn } = request;
  const head = signedIn
    ? `import os\n\nimport httpx\n\ncookies = {"sessionid": os.environ["SESSIONID"], "csrftoken": os.environ["CSRFTOKEN"]}\n`
    : "import httpx\n\n";
  const headers = [
    ...(id ? [`"x-agent-invocation-id": ${JSON.stringify(id)}`] : []),
    ...(signedIn ? [`"X-CSRFToken": cookies["csrftoken"]`] : []),
  ].join(", ");
  const given = [
    JSON.stringify(url),
    "json=body",
    ...(headers ? ["headers=headers"] : []),
    ...(signedIn ? ["cookies=cookies"] : []),
    "timeout=None",
  ].join(", ");
  const call = body.stream
    ? `with httpx.stream("POST", ${given}) as response:
    for text in response.iter_text():
        print(text, end="", flush=True)`
    : `response = httpx.post(${given})\nprint(response.text)`;
  return `${head}${headers ? `headers = {${headers}}\n` : ""}body = ${python(body)}\n${call}\n`;
}

/** Return the request as a JavaScript module: for this page's console, or for Node where no cookies are needed. */
export function asJavaScript(request) {
  const { body, url, signedIn } = request;
  const headers = Object.entries(headersOf(request)).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`);
  if (signedIn) headers.push(`    "X-CSRFToken": document.cookie.match(/csrftoken=(\\w+)/)[1],`);
  const read = body.stream
    ? `for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
  console.log(text);
}`
    : "console.log(await response.json());";
  return `const response = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: {
${headers.join("\n")}
  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
${read}
`;
}
