/** The playground: chooses endpoint and session, sends messages, and shows what comes of them. */

import { Attachments } from "./attachments.js";
import { bodyOf, draft, showForm } from "./composer.js";
import { Answer, question, storedMessages } from "./conversation.js";
import { byId, make, sendOnEnter } from "./dom.js";
import { Frames } from "./frames.js";
import { newId } from "./ids.js";
import { add, clear, isAtEnd, say, sayAnswer, scrollToEnd, showBusy, tell } from "./page.js";
import { closeOverlays, startPanels } from "./panels.js";
import { showPending } from "./pending.js";
import { RequestPane } from "./request_pane.js";
import { Run } from "./run.js";
import { addressOf, readInvocation, readSession, showSessions } from "./sessions.js";
import { choices, ownSessions, running } from "./store.js";

const config = JSON.parse(document.body.dataset.config);
const csrf = document.body.dataset.csrf;
const endpoints = new Map(config.endpoints.map((endpoint) => [endpoint.alias, endpoint]));
const form = byId("form");
const message = byId("message");

const frames = new Frames(byId("frames"), byId("frames-figures"));
const requestPane = new RequestPane(config.user !== "");
const attachments = new Attachments(tell);

let endpoint = config.endpoints[0];
let session = newId();
let current = null; // the run that is being read
let asking = false; // whether the session waits for a person
let sent = null; // the last request
let visits = 0; // what a visit of a session began does not go on in the next one
let shown = Promise.resolve(); // until what is stored of the session is shown

const showState = () => showForm(endpoint, { isRunning: Boolean(current), isAsking: asking });
const refreshSessions = () => showSessions(endpoint, () => session, config.user !== "");

// A turn

function showRequest(body, id) {
  requestPane.show({ url: new URL(endpoint.invoke, location.href).href, body, id });
}

function showDraft() {
  if (sent) return showRequest(sent.body, sent.id);
  try {
    return showRequest(bodyOf(draft(endpoint, attachments.images).what, endpoint, session), null);
  } catch {
    return undefined; // no JSON yet
  }
}

function newRun(id, answer) {
  return new Run({
    endpoint,
    id,
    csrf,
    onText: (text) => answer.show(text),
    onFrame: (kind, raw) => frames.add(kind, raw),
    onLost: (seconds) => tell(seconds === null ? "The agent is answering …" : `The connection was lost. Trying again in ${seconds} s …`),
  });
}

/** Say whether a body is too large for the endpoint; if so, the page tells. */
function isTooLarge(body) {
  const isLarge = new Blob([JSON.stringify(body)]).size > endpoint.maxBodyBytes;
  if (isLarge) tell(`This is too large: the endpoint takes ${endpoint.maxBodyBytes} bytes.`);
  return isLarge;
}

/** Carry out one turn; returns how it ended. */
async function turn(words, images, what) {
  const id = newId();
  const body = bodyOf(what, endpoint, session);
  if (isTooLarge(body)) return { kind: "failed", status: 413 };
  sent = { body, id };
  showRequest(body, id);
  frames.clear();
  running.set(endpoint.alias, session, { id, words });
  if (config.user === "") ownSessions.note(endpoint.alias, session, words);
  history.replaceState(null, "", addressOf(endpoint.alias, session));
  const answer = new Answer();
  add(question(words, images.map(({ uri }) => uri)), answer.element);
  return carry(newRun(id, answer), answer, (run) => run.send(body));
}

/** Read the answer of a run that was begun earlier. */
function resume({ id, words }) {
  frames.clear();
  const answer = new Answer();
  if (words) add(question(words));
  add(answer.element);
  return carry(newRun(id, answer), answer, (run) => run.follow());
}

async function carry(run, answer, begin) {
  const [visit, its, where] = [visits, endpoint, session];
  current = run;
  asking = false;
  answer.aroundDraw = () => (isAtEnd() ? scrollToEnd : null);
  showState();
  tell("The agent is answering …");
  say("The agent is answering.");
  const outcome = await begin(run);
  if (outcome.kind === "left" || visit !== visits) return outcome;
  if (!outcome.isLost) running.remove(its.alias, where, run.id);
  current = null;
  asking = outcome.pending.length > 0;
  const follows = isAtEnd();
  answer.end();
  showState();
  tell("");
  if (outcome.kind === "done") sayAnswer(answer.text, outcome.pending);
  else await explain(run, answer, outcome);
  if (visit !== visits) return outcome;
  if (asking) ask(answer.element, outcome.pending, outcome.asker);
  if (follows) scrollToEnd();
  refreshSessions();
  return outcome;
}

/** Say why there is no answer, or not all of it. */
async function explain(run, answer, { words, status, isLost }) {
  const stored = await readInvocation(run.endpoint, run.id);
  const { code, status: recorded } = stored?.error ?? {};
  if (code === "cancelled") {
    answer.note("Stopped. The session does not have this turn.");
    return say("Stopped.");
  }
  answer.fail(words, {
    code,
    status: recorded ?? status,
    correlation: stored?.correlation_id,
    admin: stored?.admin,
    hint: status === 401 || status === 403 ? "Who is logged in may have changed: reload the page." : "",
  });
  // What was refused before it began can be put right and sent again.
  if (!isLost && !stored?.status && sent?.id === run.id && !message.value) message.value = sent.body.message ?? "";
  return say(`This went wrong: ${words}`);
}

/** Show what a turn left open; the focus stays where it is, as an Enter too many must approve nothing. */
function ask(place, pending, asker) {
  asking = true;
  showState();
  const visit = visits;
  const card = showPending(place, pending, {
    async reply(responses, words) {
      const outcome = await turn(words, [], { responses });
      if (visit !== visits) return true;
      // Refused replies ran nothing, and the questions are still open.
      const isRefused = outcome.kind === "failed" && [401, 403, 413, 422, 429, 503].includes(outcome.status);
      if (isRefused && !asking) {
        asking = true;
        showState();
      }
      return !isRefused;
    },
    drop: asker && (async () => {
      if (!(await newRun(asker, new Answer()).stop())) return tell("The server could not be asked. The question stays open.");
      card.remove();
      place.append(make("p.note", { textContent: "The question was dropped." }));
      asking = false;
      showState();
      message.focus();
      return refreshSessions();
    }),
  });
  scrollToEnd();
}

async function stop() {
  const run = current;
  if (!run) return;
  byId("stop").disabled = true;
  byId("stop").textContent = "Stopping …";
  if (!(await run.stop()) && current === run) {
    tell("The server could not be asked to stop.");
    showState();
  }
}

// Endpoints and sessions

/** Show a session: what was said, what still runs, what waits for a person. */
async function open(alias, id) {
  visits += 1;
  const visit = visits;
  current?.leave();
  current = null;
  asking = false;
  sent = null;
  endpoint = endpoints.get(alias) ?? config.endpoints[0];
  session = id ?? newId();
  byId("endpoint").value = endpoint.alias;
  attachments.take();
  clear();
  byId("welcome").hidden = Boolean(id);
  frames.clear();
  tell("");
  shown = Promise.resolve();
  showSuggestions();
  showState();
  showDraft();
  refreshSessions();
  showBusy(Boolean(id));
  if (!id) return;
  const stored = showSession(id, visit).finally(() => visit === visits && showBusy(false));
  // A message may be sent even where what is stored could not be shown.
  shown = stored.catch(() => {});
  const { live, unsettled } = await stored;
  for (const one of live) {
    if (visit !== visits) return;
    await resume(one);
  }
  if (live.length && visit === visits && !current) await showOpenQuestions(unsettled, visit);
}

/** Show what is stored of a session, and what it asks a person unless something runs that may answer it. */
async function showSession(id, visit) {
  const stored = await showStored(id, visit);
  if (!stored.live.length) await showOpenQuestions(stored.unsettled, visit);
  return stored;
}

/** Show what is stored of a session; returns what of it runs, and what is not settled. */
async function showStored(id, visit) {
  const stored = (await readSession(endpoint, id)) ?? { messages: [], unsettled: [], isWhole: true };
  if (visit !== visits) return { live: [], unsettled: [] };
  byId("welcome").hidden = stored.messages.length > 0;
  if (!stored.isWhole) add(make("li.note", { textContent: "Earlier messages are in the admin." }));
  if (stored.messages.length) add(...storedMessages(stored.messages));
  const left = running.get(endpoint.alias, id);
  const isTold = stored.messages.some(({ invocation }) => invocation === left?.id);
  const live = stored.unsettled
    .filter(({ status }) => status !== "awaiting_input")
    .map((one) => ({ id: one.id, words: one.id === left?.id ? left.words : "" }));
  if (left && isTold) running.remove(endpoint.alias, id, left.id);
  else if (left && !live.some((one) => one.id === left.id)) live.push(left);
  return { live, unsettled: stored.unsettled };
}

async function showOpenQuestions(unsettled, visit) {
  const asker = unsettled.find(({ status }) => status === "awaiting_input");
  const status = asker && (await readInvocation(endpoint, asker.id));
  if (visit !== visits || !status?.pending?.length) return;
  const place = make("li.agent");
  add(place);
  ask(place, status.pending, asker.id);
}

function showSuggestions() {
  const buttons = endpoint.suggestions.map((words) => {
    const button = make("button", { type: "button", textContent: words });
    button.addEventListener("click", () => {
      message.value = words;
      message.focus();
      form.requestSubmit();
    });
    return make("li", {}, button);
  });
  byId("suggestions").replaceChildren(...buttons);
}

function visit(alias, id) {
  history.pushState(null, "", addressOf(alias, id));
  open(alias, id);
}

// What the person does

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const its = visits;
  await shown;
  // Who has gone to another session meanwhile finds the message unsent.
  if (its !== visits) return undefined;
  if (current || asking) return tell(asking ? "Answer the question above first." : "The agent is still answering.");
  if (!message.value && !attachments.images.length) return message.focus();
  let made;
  try {
    made = draft(endpoint, attachments.images);
  } catch (problem) {
    return tell(`This is no JSON: ${problem.message}`);
  }
  if (isTooLarge(bodyOf(made.what, endpoint, session))) return undefined;
  const images = attachments.take();
  message.value = "";
  return turn(made.words, images, made.what);
});

message.addEventListener("keydown", sendOnEnter(form));
message.addEventListener("input", () => sent || showDraft());
form.addEventListener("change", () => sent || showDraft());
byId("stop").addEventListener("click", stop);
byId("new-session").addEventListener("click", () => {
  closeOverlays();
  visit(endpoint.alias, null);
  message.focus();
});
byId("session-list").addEventListener("click", (event) => {
  const link = event.target.closest("a[data-session]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  closeOverlays();
  visit(endpoint.alias, link.dataset.session);
});
byId("endpoint").addEventListener("change", (event) => {
  choices.set("endpoint", event.target.value);
  visit(event.target.value, null);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !closeOverlays()) stop();
});
addEventListener("popstate", openFromAddress);

const attach = (files) => byId("attach").hidden || attachments.add([...files], endpoint).then(showDraft);
byId("file").addEventListener("change", async (event) => {
  await attach(event.target.files);
  event.target.value = "";
  message.focus();
});
message.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    attach(event.clipboardData.files);
  }
});
form.addEventListener("dragover", (event) => event.preventDefault());
form.addEventListener("drop", (event) => {
  event.preventDefault();
  attach(event.dataTransfer.files);
});

function openFromAddress() {
  const query = new URLSearchParams(location.search);
  open(query.get("endpoint") ?? choices.get("endpoint", config.endpoints[0].alias), query.get("session"));
}

byId("endpoint").append(...config.endpoints.map(({ alias }) => make("option", { value: alias, textContent: alias })));
startPanels(showDraft);
openFromAddress();
