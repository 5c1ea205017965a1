/* The slide viewer: OpenSeadragon below, our cells on top, and the panel that steers them. */

import { Cells } from "./cells.js";
import { features } from "./features.js";
import { finished } from "./finished.js";
import { Overlay, pathOfTissue } from "./overlay.js";
import { barOf } from "./scalebar.js";
import { fetchedSlide, json } from "./served.js";

const facts = JSON.parse(document.getElementById("viewer-facts").textContent);
const stage = document.getElementById("viewer");
const element = (id) => document.getElementById(id);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { maximumFractionDigits: digits });

const cells = new Cells();
let viewer = null;
let overlay = null;
let slide = null;
let loading = null;
let asking = 0; // the timer of the next look at a running job's cells
let ends = 0; // how often the job ended: what was asked before is of no use after it

const LOOK_EVERY_MS = 1000;

// --- start ------------------------------------------------------------------------------------

async function start() {
  let shown = await json(facts.visualization);
  if (!shown.slide) throw new Error("This job has no slide, so there is nothing to see here.");
  if (shown.slide.error) throw new Error(shown.slide.error);
  // what is known of a slide that had to be fetched, its bounds among it, is known only now
  if (await fetchedSlide(shown.slide.dzi, say)) shown = await json(facts.visualization);
  slide = shown.slide;
  viewer = open(slide.dzi);
  overlay = new Overlay(viewer, cells);
  connect();
  loadTissue();
  await loadCells(shown);
}

function open(dzi) {
  // OpenSeadragon adds a style element unless it finds one with this mark. Our policy forbids styles
  // in the page; the one rule in it stands in viewer.css, and an element of that name will do.
  const mark = document.createElementNS("urn:labsched", "style");
  mark.setAttribute("data-openseadragon-mobile-css", "true");
  document.head.append(mark);
  const made = OpenSeadragon({
    element: stage,
    tileSources: dzi,
    drawer: "canvas", // as quick as WebGL with a GPU, and twenty times quicker without one
    showNavigationControl: false, // ours have names and a focus ring
    showNavigator: matchMedia("(min-width: 760px)").matches,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorSizeRatio: 0.16,
    navigatorAutoFade: false,
    maxZoomPixelRatio: 6,
    minZoomImageRatio: 0.8,
    visibilityRatio: 0.6,
    constrainDuringPan: true,
    animationTime: 0.6,
    blendTime: 0.1,
    timeout: 120000,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  made.addHandler("open-failed", () =>
    say("The slide could not be opened for viewing. Reload the page; if it stays, look at the job."),
  );
  return made;
}

// --- data -------------------------------------------------------------------------------------

async function loadCells(shown) {
  const url = shown.cells?.geojson;
  if (!url) {
    forgetCells();
    say(waiting(shown.job));
    if (shown.provisional) lookSoon();
    return;
  }
  if (loading) return;
  loading = url;
  forgetCells();
  say("Fetching cells…");
  for await (const some of features(url)) {
    cells.add(some);
    overlay.refresh();
    count();
  }
  stage.dataset.cells = String(cells.count);
  say(cells.count ? "" : "This job found no cells on this slide.");
}

/** While the job runs: show the cells in view that are finished, soon, and not more than once. */
function lookSoon() {
  if (loading || asking || !viewer) return;
  asking = setTimeout(() => attempt(look), LOOK_EVERY_MS);
}

async function look() {
  const [view, before] = [overlay.view(), ends];
  let found = null;
  try {
    if (view) found = await finished(facts.job, overlay.windowOf(view), slide.bounds ?? []);
  } finally {
    asking = 0;
  }
  if (loading || ends !== before || !found?.some.length) return;
  replaceCells(found.some);
  stage.dataset.finished = String(cells.count);
  say(found.truncated ? "Only some of the cells here are shown: zoom in to see all of them." : "");
}

/** Show these cells instead; the picked one stays picked where it is among them. */
function replaceCells(some) {
  const centre = overlay.picked < 0 ? null : cells.centre(overlay.picked);
  cells.clear();
  cells.add(some);
  if (centre) choose(cells.nearest(...centre));
  overlay.refresh();
  count();
}

function forgetCells() {
  if (!cells.count) return;
  choose(-1);
  cells.clear();
  overlay.refresh();
  count();
}

/** Why there are no cells to see. */
function waiting(job) {
  if (job.job_type !== "cell_segmentation") return "";
  if (job.state === "SUCCEEDED") return "This job left no cells to show. Its files are on its page.";
  if (job.state === "FAILED") return `This job failed: ${job.error || "see its page."}`;
  if (job.state === "CANCELLED") return "This job was cancelled: it has no cells.";
  return "Cells appear here while the job runs.";
}

/** The tissue outline, as soon as the page names one: its job ends before that of the cells. */
async function loadTissue() {
  const url = element("viewer-state").dataset.outline;
  if (!url || overlay?.tissue !== null) return;
  try {
    const [x = 0, y = 0] = slide.bounds ?? [];
    overlay.tissue = pathOfTissue(await json(url), [x, y]);
    element("layer-tissue").hidden = false;
    overlay.refresh();
  } catch {
    element("layer-tissue").hidden = true; // the cells are worth seeing without it
  }
}

document.addEventListener("labsched:refreshed", () => loadTissue());
document.addEventListener("labsched:message", async ({ detail: { type, data } }) => {
  if (type === "cells" && data?.job === facts.job) lookSoon();
  if (type !== "job" || data?.id !== facts.job || !viewer) return;
  if (!["SUCCEEDED", "FAILED", "CANCELLED"].includes(data.state)) return;
  ends += 1;
  await attempt(async () => loadCells(await json(facts.visualization)));
});

// --- words on the stage -------------------------------------------------------------------------

function say(sentence) {
  const message = element("viewer-message");
  message.textContent = sentence;
  message.hidden = !sentence;
}

function count() {
  element("cell-count").textContent = number(cells.count);
  const view = overlay.view();
  if (!view) return;
  element("cells-here").textContent = number(cells.countIn(overlay.windowOf(view)));
}

function measure() {
  const view = overlay.view();
  if (!view) return;
  const bar = barOf(view.scale, slide.mpp_x ?? null);
  element("scale-bar").style.width = `${bar.pixels}px`;
  element("scale-label").textContent = bar.label;
  element("magnification").textContent = slide.mpp_x
    ? `${number((10 / slide.mpp_x) * view.scale, 1)}×`
    : `${number(view.scale * 100)} %`;
}

function whereIs(event) {
  const view = overlay.view();
  if (!view) return;
  const box = viewer.canvas.getBoundingClientRect();
  const x = (event.clientX - box.left - view.x) / view.scale;
  const y = (event.clientY - box.top - view.y) / view.scale;
  element("where").textContent = slide.mpp_x
    ? `${number(x * slide.mpp_x)}, ${number(y * slide.mpp_y)} µm`
    : `${number(x)}, ${number(y)} px`;
}

// --- picking ------------------------------------------------------------------------------------

function pick(event) {
  if (!event.quick) return;
  const view = overlay.view();
  const x = (event.position.x - view.x) / view.scale;
  const y = (event.position.y - view.y) / view.scale;
  choose(overlay.look.cells ? cells.at(x, y) : -1);
}

function choose(index) {
  overlay.picked = index;
  overlay.frame();
  const card = element("cell-card");
  card.hidden = index < 0;
  if (index < 0) return;
  const rows = cells.measurements(index);
  const area = rows.find(([name]) => name.startsWith("Area"));
  element("cell-title").textContent = `Cell ${number(index + 1)}`;
  element("cell-area").textContent = area
    ? `${number(area[1], 1)} ${area[0].includes("µm") ? "µm²" : "px²"}`
    : "";
  element("cell-id").textContent = cells.ids[index];
  element("cell-values").replaceChildren(...rows.flatMap(pair));
}

function pair([name, value]) {
  const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name.replace("^2", "²");
  detail.textContent = Number.isNaN(value) ? "–" : Number(value.toPrecision(4)).toLocaleString("en");
  return [term, detail];
}

// --- controls -----------------------------------------------------------------------------------

function toggle(name) {
  overlay.look[name] = !overlay.look[name];
  element(`show-${name}`).checked = overlay.look[name];
  overlay.refresh();
}

function full() {
  if (document.fullscreenElement) document.exitFullscreen();
  else element("stage").requestFullscreen?.();
}

const actions = {
  "zoom-in": () => viewer.viewport.zoomBy(1.6).applyConstraints(),
  "zoom-out": () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints(),
  home: () => viewer.viewport.goHome(),
  full,
  help: () => element("help").showModal(),
};
const keys = {
  d: () => toggle("cells"),
  h: () => toggle("cells"),
  a: () => toggle("tissue"),
  f: () => toggle("fill"),
  "+": actions["zoom-in"],
  "=": actions["zoom-in"],
  "-": actions["zoom-out"],
  0: actions.home,
  "?": actions.help,
  Escape: () => choose(-1),
};

function connect() {
  viewer.addHandler("update-viewport", measure);
  viewer.addHandler("animation-finish", count);
  viewer.addHandler("animation-finish", () => stage.dataset.finished && lookSoon());
  viewer.addHandler("open", count);
  viewer.addHandler("canvas-click", pick);
  viewer.addHandler("canvas-key", (event) => {
    // OpenSeadragon would pan by letters and rotate or flip the slide away from its overlay
    event.preventDefaultAction = !event.originalEvent.key.startsWith("Arrow");
  });
  viewer.canvas.addEventListener("pointermove", whereIs);
  document.addEventListener("keydown", onKey);
  // OpenSeadragon moves the focus by script, which browsers take for the keyboard
  document.addEventListener("keydown", ({ key }) => {
    if (key === "Tab") stage.dataset.byKeys = "";
  });
  document.addEventListener("pointerdown", () => delete stage.dataset.byKeys);
  for (const button of document.querySelectorAll("[data-does]")) {
    button.addEventListener("click", actions[button.dataset.does]);
  }
  for (const name of ["cells", "tissue", "fill"]) {
    element(`show-${name}`).addEventListener("change", () => toggle(name));
  }
  element("opacity").addEventListener("input", ({ target }) => {
    overlay.canvas.style.opacity = String(target.value / 100);
    element("opacity-value").textContent = `${target.value} %`;
  });
  for (const colour of document.querySelectorAll("input[name=colour]")) {
    colour.addEventListener("change", () => {
      overlay.look.colour = colour.value;
      stage.closest("main").dataset.colour = colour.dataset.name;
      overlay.refresh();
    });
  }
  element("cell-close").addEventListener("click", () => choose(-1));
}

function onKey(event) {
  const typing = event.target.closest("input:not([type=checkbox], [type=range], [type=radio]), select, textarea, dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (!does) return;
  event.preventDefault();
  does();
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
}

attempt(start);
