/* Keeps a page true without reloading it: ticks move bars at once; a change of state makes the page
   fetch itself and take over its regions marked data-live, as the server drew them. */

import { Feed } from "./live.js";
import { morph } from "./morph.js";

const SETTLE_MS = 120; // a finished job and the one it wakes come together
const EVERY_MS = 700;
const WORDS = {
  connecting: "connecting",
  live: "live",
  reconnecting: "reconnecting…",
  off: "signed out: reload",
};

const main = document.getElementById("main");
const phases = JSON.parse(document.getElementById("phase-words")?.textContent ?? "{}");

// --- ticks ----------------------------------------------------------------------------------

const percentOf = (progress) => (progress >= 1 ? 100 : Math.floor(progress * 100));
const all = (name, id) => document.querySelectorAll(`[${name}="${CSS.escape(id)}"]`);

/** Move every bar of one job or workflow. Bars never go back by a late tick. */
function moveBars(id, progress) {
  for (const bar of all("data-bar", id)) bar.value = Math.max(bar.value, progress);
  for (const text of all("data-percent", id)) text.textContent = `${percentOf(progress)} %`;
  for (const fill of all("data-fill", id)) {
    fill.setAttribute("width", String(Number(fill.dataset.full) * progress));
  }
}

function tick(data) {
  const id = data.id ?? data.job;
  if (!id || typeof data.progress !== "number") return;
  moveBars(id, data.progress);
  for (const text of all("data-doing", id)) text.textContent = doing(data);
  if (main?.dataset.jobPage === id && main.dataset.phase !== data.phase) {
    main.dataset.phase = data.phase; // the list of phases has moved on
    nudge();
  }
  for (const whole of document.querySelectorAll("[data-mean]")) {
    if (whole.querySelector(`[data-bar="${CSS.escape(id)}"]`)) moveWhole(whole);
  }
  retitle();
}

/** The totals of all, as the scheduler tells them; whether any worker is there is for the server. */
function figures({ active_users: users, workers }) {
  const told = { active_users: users, busy: workers?.busy, total: workers?.total };
  for (const figure of document.querySelectorAll("[data-figure]")) {
    const now = told[figure.dataset.figure];
    if (now === undefined || figure.textContent === String(now)) continue;
    if (figure.dataset.figure === "total" && !Number(figure.textContent) !== !now) nudge();
    figure.textContent = String(now);
  }
}

function doing({ phase, tiles_done: done, tiles_total: total }) {
  if (!phase) return "";
  const count = (number) => number.toLocaleString("en");
  const tiles = total ? ` · ${count(done ?? 0)} of ${count(total)} tiles` : "";
  const word = phase[0].toUpperCase() + phase.slice(1).replaceAll("_", " ");
  return (phases[phase] ?? word) + tiles;
}

/** A workflow's bar is the mean of its jobs; left to the server where not all of them are shown. */
function moveWhole(whole) {
  const id = whole.dataset.mean;
  const bars = [...whole.querySelectorAll("progress[data-bar]")].filter(
    (bar) => bar.dataset.bar !== id,
  );
  if (bars.length === 0 || bars.length !== Number(whole.dataset.total)) return;
  const mean = bars.reduce((sum, bar) => sum + bar.value, 0) / bars.length;
  moveBars(id, Math.min(mean, 0.9999));
}

function retitle() {
  const percent = document.getElementById("percent")?.textContent;
  if (percent && /^\d+ % · /.test(document.title)) {
    document.title = document.title.replace(/^\d+ %/, percent);
  }
}

// --- the page as the server sees it now -------------------------------------------------------

let timer = 0;
let last = 0;
let busy = false;

/** Fetch this page again soon; many calls make one fetch. */
function nudge() {
  if (timer || busy) {
    last = 0; // something happened meanwhile: come again at once
    return;
  }
  const wait = Math.max(SETTLE_MS, last + EVERY_MS - Date.now());
  timer = setTimeout(refresh, wait);
}

async function refresh() {
  timer = 0;
  busy = true;
  last = Date.now();
  const started = last;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected && !answer.url.startsWith(location.origin + location.pathname)) {
      badge("off");
      return;
    }
    if (answer.ok) takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    // the server is away: the feed reconnects, and its first word brings us back here
  } finally {
    busy = false;
    if (last !== started) nudge();
  }
}

function takeOver(fresh) {
  const wanted = fresh.getElementById("main");
  if (!main || !wanted) return;
  if (regions(document).join() !== regions(fresh).join()) {
    morph(main, wanted); // the empty dashboard has become a full one, or a page its first picture
  } else {
    for (const region of document.querySelectorAll("[data-live]")) {
      morph(region, fresh.getElementById(region.id));
    }
    if (wanted.dataset.state) main.dataset.state = wanted.dataset.state;
    if (wanted.dataset.total) main.dataset.total = wanted.dataset.total;
  }
  document.title = fresh.title;
  document.dispatchEvent(new CustomEvent("labsched:refreshed"));
}

const regions = (from) =>
  [...from.querySelectorAll("[data-live]")].map((region) => region.nodeName + region.id);

// --- the link -------------------------------------------------------------------------------

function badge(link) {
  const live = document.getElementById("live");
  if (!live) return;
  live.dataset.link = link;
  live.textContent = WORDS[link];
}

const takes = { progress: tick, queue: figures, cells: () => {} };
const feed = new Feed(document.body.dataset.feed, {
  workflow: main?.dataset.workflow ?? "",
  since: document.body.dataset.since ?? "",
});
feed.addEventListener("link", ({ detail }) => badge(detail));
feed.addEventListener("message", ({ detail }) => {
  document.dispatchEvent(new CustomEvent("labsched:message", { detail }));
  (takes[detail.type] ?? nudge)(detail.data);
});
if (document.body.dataset.feed) feed.open();

// --- small comforts ---------------------------------------------------------------------------

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard?.writeText(button.dataset.copy);
  button.setAttribute("aria-label", "Copied");
});

document.querySelector("[data-switcher] select")?.addEventListener("change", ({ target }) => {
  target.form.requestSubmit();
});
