/** The start page: sends a message to an endpoint and shows the answer as it comes. */

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

/** Return the error text of an answer, whatever it is made of. */
async function errorOf(response) {
  const text = await response.text();
  try {
    return `${response.status}: ${JSON.parse(text).error}`;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

async function showStream(response, answer) {
  let ended = false;
  for await (const event of readEvents(response.body)) {
    if (event.type === "error") throw new Error(event.data);
    if (event.type !== "message") continue;
    if (event.data === "[DONE]") {
      ended = true;
      continue;
    }
    answer.append(event.data);
    answer.scrollIntoView({ block: "end" });
  }
  if (!ended) throw new Error("The connection ended before the answer did.");
}

async function ask(text) {
  const stream = form.mode.value === "stream";
  const body = { message: text, session_id: form.session.value, stream };
  const answer = say("agent", "");
  answer.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(form.endpoint.value, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": form.dataset.csrf },
      body: JSON.stringify(body),
      signal: leaving.signal,
    });
    if (!response.ok) throw new Error(await errorOf(response));
    if (stream) await showStream(response, answer);
    else answer.textContent = (await response.json()).response;
    status.textContent = "";
  } catch (problem) {
    answer.parentElement.classList.add("failed");
    status.textContent = problem.name === "AbortError" ? "You stopped reading." : problem.message;
  } finally {
    answer.removeAttribute("aria-busy");
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = message.value;
  if (text === "" || leaving) return;
  leaving = new AbortController();
  send.disabled = true;
  leave.disabled = false;
  status.textContent = "The agent is answering …";
  message.value = "";
  say("user", text);
  await ask(text);
  leaving = null;
  send.disabled = false;
  leave.disabled = true;
  message.focus();
});

message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

leave.addEventListener("click", () => leaving?.abort());
