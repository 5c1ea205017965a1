/* The cells of a job in memory: outlines in typed arrays, sorted into square chunks of the slide.
   Coordinates are pixels of the deep-zoom image. */

const CHUNK = 512;
const FIRST_POINTS = 1 << 16;

/** A square of the slide with the cells whose boxes begin in it. */
class Chunk {
  constructor(x, y) {
    this.x = x;
    this.y = y;
    this.cells = [];
    this.box = [Infinity, Infinity, -Infinity, -Infinity];
    this.path = null;
  }

  add(index, [x0, y0, x1, y1]) {
    this.cells.push(index);
    const box = this.box;
    box[0] = Math.min(box[0], x0);
    box[1] = Math.min(box[1], y0);
    box[2] = Math.max(box[2], x1);
    box[3] = Math.max(box[3], y1);
    this.path = null;
  }
}

/** All cells of a job. */
export class Cells {
  constructor() {
    this.version = 0;
    this.clear();
  }

  /** Forget all cells. */
  clear() {
    this.count = 0;
    this.version += 1;
    this.names = [];
    this.ids = [];
    this.starts = [0]; // of each outline, in points
    this.boxes = [];
    this.values = [];
    this.points = new Float32Array(FIRST_POINTS);
    this.chunks = new Map();
    this.spanSum = 0;
  }

  /** Take over GeoJSON detections. */
  add(features) {
    for (const feature of features) {
      const ring = outerRing(feature.geometry);
      if (ring) this.#addOne(feature, ring);
    }
    this.version += 1;
  }

  #addOne(feature, ring) {
    const index = this.count;
    const last = ring.length - 1; // closed: the last point is the first
    const begin = this.starts[index];
    this.#room(begin + last);
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (let at = 0; at < last; at += 1) {
      const [x, y] = ring[at];
      this.points[2 * (begin + at)] = x;
      this.points[2 * (begin + at) + 1] = y;
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x);
      box[3] = Math.max(box[3], y);
    }
    this.starts.push(begin + last);
    this.ids.push(feature.id);
    this.boxes.push(box);
    this.values.push(this.#row(feature.properties?.measurements ?? {}));
    this.spanSum += Math.max(box[2] - box[0], box[3] - box[1]);
    this.#chunkAt(box[0], box[1]).add(index, box);
    this.count += 1;
  }

  #row(measurements) {
    const names = Object.keys(measurements);
    if (this.names.length === 0) this.names = names;
    return Float32Array.from(this.names, (name) => Number(measurements[name] ?? NaN));
  }

  #room(points) {
    if (2 * points <= this.points.length) return;
    const wider = new Float32Array(Math.max(2 * points, this.points.length * 2));
    wider.set(this.points);
    this.points = wider;
  }

  #chunkAt(x, y) {
    const col = Math.floor(x / CHUNK);
    const row = Math.floor(y / CHUNK);
    const key = `${col}_${row}`;
    let chunk = this.chunks.get(key);
    if (!chunk) this.chunks.set(key, (chunk = new Chunk(col * CHUNK, row * CHUNK)));
    return chunk;
  }

  /** The mean size of a cell in image pixels. */
  get span() {
    return this.count ? this.spanSum / this.count : 0;
  }

  /** The chunks that touch the box [x0, y0, x1, y1]. */
  chunksIn(box) {
    return [...this.chunks.values()].filter((chunk) => overlaps(chunk.box, box));
  }

  /** How many cells touch the box. */
  countIn(box) {
    let found = 0;
    for (const chunk of this.chunksIn(box)) {
      if (within(chunk.box, box)) found += chunk.cells.length;
      else for (const index of chunk.cells) found += overlaps(this.boxes[index], box) ? 1 : 0;
    }
    return found;
  }

  /** The outlines of a chunk as one path, relative to its corner; kept until cells are added. */
  pathOf(chunk) {
    if (!chunk.path) {
      chunk.path = new Path2D();
      for (const index of chunk.cells) this.trace(chunk.path, index, chunk.x, chunk.y);
    }
    return chunk.path;
  }

  /** Add the outline of one cell to `path`, relative to (x, y). */
  trace(path, index, x, y) {
    const { points } = this;
    const end = this.starts[index + 1];
    let at = this.starts[index];
    path.moveTo(points[2 * at] - x, points[2 * at + 1] - y);
    for (at += 1; at < end; at += 1) path.lineTo(points[2 * at] - x, points[2 * at + 1] - y);
    path.closePath();
  }

  /** The index of the cell at a point, -1 where there is none. */
  at(x, y) {
    const here = [x, y, x, y];
    for (const chunk of this.chunksIn(here)) {
      const hit = chunk.cells.find(
        (index) => overlaps(this.boxes[index], here) && this.#contains(index, x, y),
      );
      if (hit !== undefined) return hit;
    }
    return -1;
  }

  /** The middle of a cell's box. */
  centre(index) {
    const [x0, y0, x1, y1] = this.boxes[index];
    return [(x0 + x1) / 2, (y0 + y1) / 2];
  }

  /** The index of the cell whose middle is nearest to a point in its box, -1 where there is none. */
  nearest(x, y) {
    const here = [x, y, x, y];
    const far = (index) => Math.hypot(this.centre(index)[0] - x, this.centre(index)[1] - y);
    return this.chunksIn(here)
      .flatMap((chunk) => chunk.cells.filter((index) => overlaps(this.boxes[index], here)))
      .reduce((best, index) => (best < 0 || far(index) < far(best) ? index : best), -1);
  }

  #contains(index, x, y) {
    const { points, starts } = this;
    const end = starts[index + 1];
    let inside = false;
    for (let at = starts[index], before = end - 1; at < end; before = at, at += 1) {
      const [ax, ay] = [points[2 * at], points[2 * at + 1]];
      const [bx, by] = [points[2 * before], points[2 * before + 1]];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
    }
    return inside;
  }

  /** [name, value] of every measurement of a cell. */
  measurements(index) {
    return this.names.map((name, place) => [name, this.values[index][place]]);
  }
}

const overlaps = (a, b) => a[0] <= b[2] && a[2] >= b[0] && a[1] <= b[3] && a[3] >= b[1];
const within = (a, b) => a[0] >= b[0] && a[2] <= b[2] && a[1] >= b[1] && a[3] <= b[3];

function outerRing(geometry) {
  if (geometry?.type === "Polygon") return geometry.coordinates[0];
  if (geometry?.type === "MultiPolygon") return geometry.coordinates[0][0];
  return null;
}
