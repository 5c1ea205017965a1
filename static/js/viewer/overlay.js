/* Draws cells and tissue on a canvas over the slide, in step with its viewport.

   Few cells in view: every frame is drawn anew. Many: while the slide moves, the last picture is moved
   with it; once it rests, a new one is drawn in slices, so that no frame waits. */

const DIRECT = 3500; // cells that one frame can draw
const REST_MS = 90;
const SLICE_MS = 9;
const DOT_UNDER = 3; // CSS pixels: smaller cells are dots
const THIN_UNDER = 16; // smaller ones have a thin outline, or they would hide the tissue
const PICKED = "#ffe600";

export class Overlay {
  /** @param {OpenSeadragon.Viewer} viewer  @param {Cells} cells */
  constructor(viewer, cells) {
    this.viewer = viewer;
    this.cells = cells;
    this.tissue = null;
    this.picked = -1;
    this.look = {
      cells: true, tissue: true, fill: false, colour: "#00d3e6", width: 1.6, tissueColour: "#1848c8",
    };
    this.canvas = document.createElement("canvas");
    this.canvas.className = "cells";
    this.canvas.setAttribute("aria-hidden", "true");
    this.context = this.canvas.getContext("2d");
    this.back = document.createElement("canvas");
    this.picture = null; // what `back` shows: {view, key}
    this.restTimer = 0;
    this.job = 0;
    viewer.canvas.append(this.canvas);
    viewer.addHandler("update-viewport", () => this.frame());
    viewer.addHandler("open", () => this.frame());
    new ResizeObserver(() => this.frame()).observe(viewer.canvas);
  }

  /** Where the image lies now: its corner and scale in CSS pixels. */
  view() {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return null;
    const { viewport } = this.viewer;
    const corner = viewport.pixelFromPoint(image.imageToViewportCoordinates(0, 0), true);
    const size = image.getContentSize();
    const far = viewport.pixelFromPoint(image.imageToViewportCoordinates(size.x, 0), true);
    return { x: corner.x, y: corner.y, scale: (far.x - corner.x) / size.x };
  }

  /** The part of the image in view: [x0, y0, x1, y1] in image pixels. */
  windowOf({ x, y, scale }) {
    const { width, height } = this.size;
    return [-x / scale, -y / scale, (width - x) / scale, (height - y) / scale];
  }

  get size() {
    const element = this.viewer.canvas;
    return { width: element.clientWidth, height: element.clientHeight };
  }

  /** Draw again: the look or the cells have changed. */
  refresh() {
    this.frame();
  }

  frame() {
    const view = this.view();
    if (!view || !this.fit(this.canvas)) return;
    const chunks = this.look.cells ? this.cells.chunksIn(this.windowOf(view)) : [];
    const many = chunks.reduce((sum, chunk) => sum + chunk.cells.length, 0) > DIRECT;
    this.wipe(this.context);
    if (many) this.drawPicture(view);
    else this.drawChunks(this.context, view, chunks);
    if (this.look.tissue) this.drawTissue(view);
    if (this.picked >= 0) this.drawPicked(view);
  }

  /** Match the canvas to its element and screen. False while it has no size. */
  fit(canvas) {
    const { width, height } = this.size;
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    const [wide, high] = [Math.round(width * this.ratio), Math.round(height * this.ratio)];
    if (canvas.width !== wide) canvas.width = wide;
    if (canvas.height !== high) canvas.height = high;
    return wide > 0 && high > 0;
  }

  wipe(context) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  }

  // --- many cells: a picture that moves along ---------------------------------------------

  drawPicture(view) {
    const key = `${this.cells.version} ${JSON.stringify(this.look)} ${this.canvas.width}`;
    const shown = this.picture;
    if (shown) {
      const zoom = view.scale / shown.view.scale;
      this.context.setTransform(
        zoom, 0, 0, zoom,
        (view.x - shown.view.x * zoom) * this.ratio, (view.y - shown.view.y * zoom) * this.ratio,
      );
      this.context.drawImage(this.back, 0, 0);
    }
    const same = shown && shown.key === key && sameView(shown.view, view);
    if (same) return;
    clearTimeout(this.restTimer);
    this.restTimer = setTimeout(() => this.drawSlowly(key), shown ? REST_MS : 0);
  }

  /** Draw the present view beside the shown one, in slices, then show it. */
  async drawSlowly(key) {
    const view = this.view();
    if (!view) return;
    const turn = (this.job += 1);
    const canvas = document.createElement("canvas");
    this.fit(canvas);
    const context = canvas.getContext("2d");
    let started = performance.now();
    for (const chunk of this.cells.chunksIn(this.windowOf(view))) {
      this.drawChunks(context, view, [chunk]);
      if (performance.now() - started < SLICE_MS) continue;
      await new Promise(requestAnimationFrame);
      if (turn !== this.job || !sameView(view, this.view())) return; // a newer one is on its way
      started = performance.now();
    }
    this.back = canvas;
    this.picture = { view, key };
    this.frame();
  }

  // --- strokes ----------------------------------------------------------------------------

  drawChunks(context, view, chunks) {
    const { colour, fill, width } = this.look;
    context.strokeStyle = context.fillStyle = colour;
    const shown = this.cells.span * view.scale;
    const dots = shown < DOT_UNDER;
    const line = shown < THIN_UNDER ? width * 0.6 : width;
    for (const chunk of chunks) {
      this.place(context, view, chunk.x, chunk.y);
      if (dots) {
        this.drawDots(context, view, chunk);
        continue;
      }
      const path = this.cells.pathOf(chunk);
      if (fill) {
        context.globalAlpha = 0.3;
        context.fill(path);
        context.globalAlpha = 1;
      }
      context.lineWidth = line / view.scale;
      context.stroke(path);
    }
  }

  drawDots(context, view, chunk) {
    const side = 1.6 / view.scale;
    for (const index of chunk.cells) {
      const [x0, y0, x1, y1] = this.cells.boxes[index];
      context.fillRect((x0 + x1 - side) / 2 - chunk.x, (y0 + y1 - side) / 2 - chunk.y, side, side);
    }
  }

  drawTissue(view) {
    if (!this.tissue) return;
    const { context } = this;
    this.place(context, view, 0, 0);
    context.strokeStyle = this.look.tissueColour;
    context.lineWidth = 2 / view.scale;
    context.setLineDash([7 / view.scale, 4 / view.scale]);
    context.stroke(this.tissue);
    context.setLineDash([]);
  }

  drawPicked(view) {
    const { context } = this;
    const path = new Path2D();
    this.cells.trace(path, this.picked, 0, 0);
    this.place(context, view, 0, 0);
    for (const [colour, width] of [["#000", 5], [PICKED, 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width / view.scale;
      context.stroke(path);
    }
  }

  /** Make (0, 0) of what follows the point (x, y) of the image. */
  place(context, view, x, y) {
    const scale = view.scale * this.ratio;
    context.setTransform(
      scale, 0, 0, scale,
      (view.x + x * view.scale) * this.ratio, (view.y + y * view.scale) * this.ratio,
    );
  }
}

function sameView(a, b) {
  return (
    b !== null &&
    Math.abs(a.x - b.x) < 0.05 && Math.abs(a.y - b.y) < 0.05 &&
    Math.abs(a.scale / b.scale - 1) < 1e-6
  );
}

/** Polygons of GeoJSON as one path, shifted by (-x, -y). */
export function pathOfTissue(collection, [x, y]) {
  const path = new Path2D();
  for (const { geometry } of collection.features ?? []) {
    const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
    for (const ring of polygons.flat()) {
      ring.forEach(([px, py], at) => {
        if (at === 0) path.moveTo(px - x, py - y);
        else path.lineTo(px - x, py - y);
      });
      path.closePath();
    }
  }
  return path;
}
