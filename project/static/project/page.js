/** What the page says, and where its conversation stands. */

import { byId } from "./dom.js";

const END_PIXELS = 120;

const conversation = byId("conversation");
const scroller = byId("scroller");

/** Say something in the line below the message. */
export function tell(words) {
  byId("status").textContent = words;
}

/** Say something to who does not see the page. */
export function say(words) {
  byId("said").textContent = words;
}

/** Say to who does not see the page what an answer says; a long one is left to be read. */
export function sayAnswer(text, pending) {
  if (pending.length) say(`${text} The agent waits for your answer.`);
  else say(text.length > 600 ? `The answer is there. It has ${text.length} characters.` : `The agent says: ${text}`);
}

/** Say whether the end of the conversation is in sight: who reads there stays there. */
export const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < END_PIXELS;

export function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

/** Add to the conversation, and go there. */
export function add(...items) {
  byId("welcome").hidden = true;
  conversation.append(...items);
  scrollToEnd();
}

/** Say whether what is stored of the conversation is still to come. */
export function showBusy(isBusy) {
  conversation.setAttribute("aria-busy", String(isBusy));
}

/** Begin an empty conversation. */
export function clear() {
  conversation.replaceChildren();
}
