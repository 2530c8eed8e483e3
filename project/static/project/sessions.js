/** The list of sessions, and what the site tells of one. */

import { byId, make, shortTime } from "./dom.js";
import { ownSessions } from "./store.js";

/** Return the page's address for a session of an endpoint. */
export function addressOf(alias, session) {
  const query = new URLSearchParams({ endpoint: alias, ...(session ? { session } : {}) });
  return `?${query}`;
}

async function get(url) {
  try {
    const response = await fetch(url);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

/** Return the sessions of an endpoint, the last used one first. */
async function list(endpoint, isLoggedIn) {
  if (!endpoint.hasSessions) return [];
  if (!isLoggedIn) return ownSessions.list(endpoint.alias);
  return (await get(`${endpoint.about}sessions`))?.sessions ?? [];
}

/** Return one session, or null where the site cannot tell. */
export const readSession = (endpoint, id) => get(`${endpoint.about}sessions?${new URLSearchParams({ id })}`);

/** Return what is stored of an invocation: an empty object for nothing, null where the site cannot tell. */
export const readInvocation = (endpoint, id) => get(`${endpoint.about}invocations/${encodeURIComponent(id)}`);

/** Show the sessions of an endpoint, the open one marked. */
export async function showSessions(endpoint, current, isLoggedIn) {
  const sessions = await list(endpoint, isLoggedIn);
  const items = sessions.map(({ id, title, at, pending }) => {
    const words = make("span.title", { textContent: title || `Untitled ${id.slice(0, 8)}`, dir: "auto" });
    const line = make("small", { textContent: shortTime(at) });
    if (pending) line.append(" · ", make("b", { textContent: "waits for you" }));
    const link = make("a", { href: addressOf(endpoint.alias, id), "data-session": id }, words, line);
    if (id === current()) link.setAttribute("aria-current", "page");
    return make("li", {}, link);
  });
  byId("session-list").replaceChildren(...items);
  byId("no-sessions").hidden = items.length > 0;
}
