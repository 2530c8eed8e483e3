/** What the form says: the message, and how it is to be sent. */

import { byId } from "./dom.js";

const form = byId("form");
const message = byId("message");

/**
 * Return what the form would send: its words, and `what` of the body says them.
 * @throws {SyntaxError} if it should be JSON and is none
 */
export function draft(endpoint, images) {
  const words = message.value;
  if (endpoint.kind === "workflow") {
    return { words, what: { input: form.elements.input.value === "json" ? JSON.parse(words) : words } };
  }
  if (!images.length) return { words, what: { message: words } };
  const contents = images.map(({ uri }) => ({ type: "data", uri }));
  if (words) contents.unshift({ type: "text", text: words });
  return { words, what: { input: [{ role: "user", contents }] } };
}

/** Return the whole body. */
export function bodyOf(what, endpoint, session) {
  return { ...what, ...(endpoint.hasSessions ? { session_id: session } : {}), stream: form.elements.mode.value === "stream" };
}

/** Show what the form is for: an endpoint, and whether something runs or waits for a person. */
export function showForm(endpoint, { isRunning, isAsking }) {
  const isWorkflow = endpoint.kind === "workflow";
  byId("form-of-input").hidden = !isWorkflow;
  byId("attach").hidden = isWorkflow || !endpoint.imageTypes.length;
  byId("stop").hidden = !isRunning;
  byId("stop").disabled = false;
  byId("stop").textContent = "Stop";
  byId("send").hidden = isRunning;
  byId("send").disabled = isAsking;
  const otherwise = isWorkflow ? "Write the input" : "Write a message";
  message.placeholder = isAsking ? "Answer the question above first" : otherwise;
}
