/** The start page: sends a message to an endpoint and shows the answer as it comes. */

import { showPending } from "./pending.js";
import { readEvents } from "./sse.js";

const form = document.getElementById("form");
const conversation = document.getElementById("conversation");
const message = document.getElementById("message");
const send = document.getElementById("send");
const leave = document.getElementById("leave");
const status = document.getElementById("status");
let leaving = null;

// getRandomValues and not randomUUID: the latter is missing on plain http beyond this machine.
const random = crypto.getRandomValues(new Uint8Array(6));
form.session.value = "page-" + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Add a message to the conversation and return the element its text goes into. */
function say(who, text) {
  const item = document.createElement("li");
  item.className = who;
  const name = document.createElement("b");
  name.textContent = who === "user" ? "You" : "Agent";
  const body = document.createElement("div");
  body.textContent = text;
  item.append(name, body);
  conversation.append(item);
  item.scrollIntoView({ block: "end" });
  return body;
}

/** Return what an answer that is no success says, whatever it is made of. */
async function refusalOf(response) {
  const text = await response.text();
  try {
    const { error, pending = [] } = JSON.parse(text);
    return { words: `${response.status}: ${error}`, pending };
  } catch {
    return { words: `${response.status} ${response.statusText}`, pending: [] };
  }
}

/** Show a stream as it comes and return what it leaves pending. */
async function showStream(response, answer) {
  const pending = [];
  let ended = false;
  for await (const event of readEvents(response.body)) {
    if (event.type === "error") throw new Error(event.data);
    if (event.type === "request_info") pending.push(JSON.parse(event.data));
    if (event.type !== "message") continue;
    if (event.data === "[DONE]") {
      ended = true;
      continue;
    }
    answer.append(event.data);
    answer.scrollIntoView({ block: "end" });
  }
  if (!ended) throw new Error("The connection ended before the answer did.");
  return pending;
}

/** Send a body to an endpoint, show the answer, and return what is pending after it. */
async function ask(url, body) {
  const answer = say("agent", "");
  answer.setAttribute("aria-busy", "true");
  let pending = [];
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": form.dataset.csrf },
      body: JSON.stringify(body),
      signal: leaving.signal,
    });
    if (!response.ok) {
      const refusal = await refusalOf(response);
      pending = refusal.pending;
      throw new Error(refusal.words);
    }
    if (body.stream) pending = await showStream(response, answer);
    else {
      const told = await response.json();
      answer.textContent = told.response;
      pending = told.pending ?? [];
    }
    status.textContent = pending.length ? "The agent waits for you." : "";
  } catch (problem) {
    answer.parentElement.classList.add("failed");
    status.textContent = problem.name === "AbortError" ? "You stopped reading." : problem.message;
  } finally {
    answer.removeAttribute("aria-busy");
  }
  return { item: answer.parentElement, pending };
}

/** Carry out one turn: what the user said, and what it is sent as. */
async function turn(words, url, session, what) {
  if (leaving) return;
  leaving = new AbortController();
  send.disabled = true;
  leave.disabled = false;
  status.textContent = "The agent is answering …";
  say("user", words);
  const body = { ...what, session_id: session, stream: form.mode.value === "stream" };
  const { item, pending } = await ask(url, body);
  leaving = null;
  send.disabled = false;
  leave.disabled = true;
  message.focus();
  // The focus stays in the text: an Enter too many must approve nothing. The replies belong to
  // the session that was asked in, whatever the form says by then.
  if (pending.length) showPending(item, pending, (responses, said) => turn(said, url, session, { responses }));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  if (text === "" || leaving) return;
  message.value = "";
  turn(text, form.endpoint.value, form.session.value, { message: text });
});

message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

leave.addEventListener("click", () => leaving?.abort());
