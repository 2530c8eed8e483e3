/** What the page remembers in this browser: the runs that were left, the sessions of those without a login, choices. */

const PREFIX = "playground:";

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // No storage, or none left: the page works without a memory.
  }
}

const MAX_SESSIONS = 50;

export const choices = {
  get: (name, otherwise) => read(`choice:${name}`, otherwise),
  set: (name, value) => write(`choice:${name}`, value),
};

/** Runs that have not been seen to end, by endpoint and session: `{id, words, images}`. */
export const running = {
  key: (alias, session) => JSON.stringify([alias, session]),
  get(alias, session) {
    return read("running", {})[this.key(alias, session)];
  },
  set(alias, session, run) {
    write("running", { ...read("running", {}), [this.key(alias, session)]: run });
  },
  /** Forget a run; another one of that session, which a second tab may have begun, stays. */
  remove(alias, session, id) {
    const { [this.key(alias, session)]: found, ...others } = read("running", {});
    if (found?.id === id) write("running", others);
  },
};

/** Sessions of this browser: where nobody is logged in the server lists none, as ids are secrets there. */
export const ownSessions = {
  list: (alias) => read(`sessions:${alias}`, []),
  note(alias, id, title) {
    const others = this.list(alias).filter((one) => one.id !== id);
    const known = this.list(alias).find((one) => one.id === id);
    const entry = { id, title: known?.title || title.slice(0, 80), at: new Date().toISOString() };
    write(`sessions:${alias}`, [entry, ...others].slice(0, MAX_SESSIONS));
  },
};
