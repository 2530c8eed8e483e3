/** What awaits a person: approvals with two buttons, other requests with a reply; all are sent together. */

import { make, pretty, sendOnEnter } from "./dom.js";

function question(request) {
  if (request.type === "approval") return ["May the agent call ", make("b", { textContent: request.tool }), "?"];
  if (request.type === "tool_call") return ["Carry out ", make("b", { textContent: request.tool }), " and tell its result."];
  return [typeof request.data?.question === "string" ? request.data.question : "The workflow asks you."];
}

function details(request) {
  if (request.type !== "request_info") return request.arguments;
  if (typeof request.data?.question !== "string") return request.data;
  const { question: _, ...others } = request.data;
  return others;
}

function table(value) {
  const isPlain = value && typeof value === "object" && !Array.isArray(value);
  if (!isPlain) return value == null ? "" : make("pre", { textContent: pretty(value), dir: "auto" });
  const rows = Object.entries(value).map(([name, one]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: pretty(one), dir: "auto" })),
  );
  return make("dl", {}, ...rows);
}

let numbered = 0;

/** Return a field for a reply that is no yes or no, and what reads it. */
function replyField(request) {
  numbered += 1;
  const id = `reply-${numbered}`;
  const text = make("textarea", { id, rows: 2, dir: "auto" });
  const format = make("select", { "aria-label": "Form of the reply" }, make("option", { value: "text", textContent: "Text" }), make("option", { value: "json", textContent: "JSON" }));
  if (request.type === "tool_call") format.value = "json";
  const problem = make("p.problem", { role: "alert" });
  const read = () => {
    if (format.value === "text") return text.value;
    return JSON.parse(text.value);
  };
  const label = make("label", { htmlFor: id, textContent: "Reply" });
  return { elements: [label, text, make("div.row", {}, format), problem], text, problem, read };
}

/**
 * Show requests below an answer.
 * @param {Element} place
 * @param {object[]} pending the requests, as the answer has them
 * @param {object} doing
 * @param {(responses: object, words: string) => Promise<boolean>} doing.reply sends the replies, by request id; false:
 *   they were refused, and may be given anew
 * @param {(() => void)|null} doing.drop drops the questions
 */
export function showPending(place, pending, { reply, drop }) {
  const card = make("section.pending", { "aria-label": "The agent waits for you" });
  const responses = new Map();
  const forms = [];

  const send = async () => {
    const words = pending.map((request) => wordsOf(request, responses.get(request.request_id))).join("\n");
    for (const control of card.querySelectorAll("button, textarea, select")) control.disabled = true;
    if (await reply(Object.fromEntries(responses), words)) return card.classList.add("answered");
    responses.clear();
    for (const form of forms) form.classList.remove("given");
    for (const control of card.querySelectorAll("button, textarea, select")) {
      control.disabled = false;
      control.removeAttribute("aria-pressed");
    }
  };
  const give = (form, request, value) => {
    responses.set(request.request_id, value);
    form.classList.add("given");
    if (responses.size === pending.length) send();
    else forms.find((other) => !other.classList.contains("given"))?.querySelector("button, textarea")?.focus();
  };

  for (const request of pending) {
    const form = make("form", {}, make("p.question", { dir: "auto" }, ...question(request)), table(details(request)));
    forms.push(form);
    if (request.type === "approval") form.append(make("div.row", {}, ...approvalButtons(form, request, give)));
    else form.append(...replyElements(form, request, give));
    card.append(form);
  }
  if (drop) {
    const button = make("button.quiet", { type: "button", textContent: pending.length === 1 ? "Drop the question" : "Drop the questions" });
    button.addEventListener("click", drop);
    card.append(button);
  }
  place.append(card);
  return card;
}

function approvalButtons(form, request, give) {
  const buttons = [["Approve", true], ["Refuse", false]].map(([label, approved]) => {
    const button = make(approved ? "button.primary" : "button", { type: "button", textContent: label });
    button.addEventListener("click", () => {
      for (const each of buttons) each.disabled = true;
      button.setAttribute("aria-pressed", "true");
      give(form, request, approved);
    });
    return button;
  });
  return buttons;
}

function replyElements(form, request, give) {
  const field = replyField(request);
  field.elements.find((one) => one.className === "row").append(make("button.primary", { type: "submit", textContent: "Reply" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      const value = field.read();
      field.problem.textContent = "";
      give(form, request, value);
    } catch (problem) {
      field.problem.textContent = `This is no JSON: ${problem.message}`;
      field.text.focus();
    }
  });
  field.text.addEventListener("keydown", sendOnEnter(form));
  return field.elements;
}

function wordsOf(request, value) {
  if (request.type === "approval") return `${value ? "Approved" : "Refused"}: ${request.tool}`;
  return pretty(value);
}
