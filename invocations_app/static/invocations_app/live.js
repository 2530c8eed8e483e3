// Keeps the state of invocations on admin pages up to date, and copies ids.
// Served as a file: it works under a Content-Security-Policy of "script-src 'self'".
// Without it the pages are right when they are loaded, and stay as they are.

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 15000;
const LONGEST_PAUSE_AFTER_FAILURE = 60000;

/** What a look came to. */
const SAME = "same";
const CHANGED = "changed";
const OVER = "over";

/** There is nothing to look at any more: signed out, or the record is gone. */
class Lost extends Error {}

/** Fetch a page of the admin. */
async function load(address) {
  const response = await fetch(address, {
    credentials: "same-origin",
    redirect: "manual",
    headers: { "X-Requested-With": "XMLHttpRequest" },
  });
  if (response.type === "opaqueredirect" || response.status === 403 || response.status === 404) {
    throw new Lost();
  }
  if (!response.ok) {
    throw new Error(`status ${response.status}`);
  }
  return response;
}

async function loadPage(address) {
  return new DOMParser().parseFromString(await (await load(address)).text(), "text/html");
}

/**
 * Look again and again, less often while nothing changes, and not at all while the page is hidden.
 * @param {() => Promise<string>} look Returns SAME, CHANGED or OVER.
 * @param {() => void} lost Called where there is nothing to look at any more.
 */
function poll(look, lost) {
  let pause = FIRST_PAUSE;
  let timer = 0;
  let looking = false;

  const stop = () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", shownOrHidden);
  };
  const plan = () => {
    clearTimeout(timer);
    if (!document.hidden) {
      timer = setTimeout(run, pause);
    }
  };
  async function run() {
    looking = true;
    try {
      const news = await look();
      if (news === OVER) {
        stop();
        return;
      }
      pause = news === CHANGED ? FIRST_PAUSE : Math.min(pause * 1.5, LONGEST_PAUSE);
    } catch (error) {
      if (error instanceof Lost) {
        stop();
        lost();
        return;
      }
      pause = Math.min(pause * 2, LONGEST_PAUSE_AFTER_FAILURE);
    } finally {
      looking = false;
    }
    plan();
  }
  function shownOrHidden() {
    clearTimeout(timer);
    if (!document.hidden && !looking) {
      pause = FIRST_PAUSE;
      run();
    }
  }
  document.addEventListener("visibilitychange", shownOrHidden);
  plan();
}

/** Tell those who do not see the page; said once, when it changes. */
function say(text) {
  const place = document.querySelector("[data-invocations-said]");
  if (place) {
    place.textContent = text;
  }
}

/** Whether somebody is in the middle of something there: a selected text, a focused element. */
function isInUse(element) {
  const selection = document.getSelection();
  const selected = selection && !selection.isCollapsed && selection.anchorNode && element.contains(selection.anchorNode);
  return selected || (element.contains(document.activeElement) && document.activeElement !== element);
}

/** The page of one invocation: its state while it lives, and all of the page when it has ended. */
function followInvocation(holder) {
  const texts = holder.dataset;
  const section = () => holder.querySelector("[data-live]");
  if (section().dataset.live !== "true") {
    return;
  }
  showScripted(holder);
  poll(
    async () => {
      const fresh = (await loadPage(texts.invocationsLive)).querySelector("[data-live]");
      if (!fresh) {
        throw new Lost();
      }
      const before = { ...section().dataset };
      if (fresh.dataset.live !== "true") {
        await replacePage();
        say(texts.saidEnded.replace("%s", fresh.dataset.status));
        return OVER;
      }
      if (!isInUse(holder)) {
        section().replaceWith(fresh);
        showScripted(holder);
      }
      if (fresh.dataset.status !== before.status) {
        say(texts.saidState.replace("%s", fresh.dataset.status));
      }
      return fresh.dataset.version === before.version ? SAME : CHANGED;
    },
    () => say(texts.saidLost),
  );
}

/** Put the page as it is now in the place of what is shown; the address, scrolling and open folds stay. */
async function replacePage() {
  // The place of what is said stays: a screen reader hears what changes in an element that it knows.
  const shown = document.getElementById("content-main");
  const fresh = (await loadPage(location.href)).getElementById("content-main");
  if (!fresh) {
    throw new Lost();
  }
  shown.replaceWith(fresh);
  offerCopies(fresh);
}

/** A list: when the state of a row that lives has changed, the row is fetched anew. */
function followRows() {
  const live = new Map();
  const collect = () => {
    live.clear();
    for (const mark of document.querySelectorAll("[data-invocations-row]")) {
      if (mark.dataset.live === "true") {
        live.set(mark.dataset.invocationsRow, mark.dataset.status);
      }
    }
  };
  collect();
  const first = document.querySelector("[data-invocations-row]");
  if (!live.size || !first) {
    return;
  }
  const address = first.dataset.address;
  poll(
    async () => {
      const query = new URLSearchParams([...live.keys()].map((pk) => ["id", pk]));
      const states = await (await load(`${address}?${query}`)).json();
      const changed = [...live].filter(([pk, status]) => states[pk] !== status).map(([pk]) => pk);
      if (!changed.length) {
        return SAME;
      }
      const fresh = await loadPage(location.href);
      for (const pk of changed) {
        const find = (page) => page.querySelector(`[data-invocations-row="${CSS.escape(pk)}"]`);
        const row = find(document).closest("tr");
        const news = find(fresh)?.closest("tr");
        if (news) {
          row.replaceChildren(...news.children);
        } else {
          // It is on another page of the list by now, or gone.
          delete find(document).dataset.live;
        }
      }
      collect();
      return live.size ? CHANGED : OVER;
    },
    () => {},
  );
}

/** Show what is true only where this script runs. */
function showScripted(place) {
  for (const element of place.querySelectorAll("[data-invocations-script]")) {
    element.hidden = false;
  }
}

/** Offer to copy ids, where the browser lets a page do so. */
function offerCopies(place) {
  if (!navigator.clipboard) {
    return;
  }
  for (const button of place.querySelectorAll("[data-invocations-copy]")) {
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.invocationsCopy);
      button.textContent = button.dataset.done;
      say(button.dataset.done);
      setTimeout(() => {
        button.textContent = label;
      }, 2000);
    });
  }
}

offerCopies(document);
const holder = document.querySelector("[data-invocations-live]");
if (holder) {
  followInvocation(holder);
}
followRows();
