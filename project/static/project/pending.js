/** What awaits a person: each request with two buttons, the replies sent together once all are given. */

/** Return the words for a request. */
function wordsOf(request) {
  if (request.type === "request_info") return `The workflow asks: ${JSON.stringify(request.data)}`;
  return `The agent wants to call ${request.tool}: ${JSON.stringify(request.arguments)}`;
}

/**
 * Show requests below a message.
 * @param {Element} item the message
 * @param {object[]} pending the requests, as the answer has them
 * @param {(responses: object, words: string) => void} send takes the replies, by request id
 */
export function showPending(item, pending, send) {
  const responses = {};
  const answered = [];
  for (const request of pending) {
    const group = document.createElement("fieldset");
    group.className = "pending";
    const question = document.createElement("legend");
    question.textContent = wordsOf(request);
    group.append(question);
    item.append(group);
    if (request.type !== "approval") {
      group.append("This page has no form for the reply: send it as responses, see README.md.");
      continue;
    }
    for (const [label, approved] of [["Approve", true], ["Refuse", false]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => {
        for (const each of group.querySelectorAll("button")) each.disabled = true;
        button.setAttribute("aria-pressed", "true");
        responses[request.request_id] = approved;
        answered.push(`${label} ${request.tool}`);
        if (answered.length === pending.length) send(responses, answered.join(", "));
      });
      group.append(button);
    }
  }
  item.scrollIntoView({ block: "end" });
}
