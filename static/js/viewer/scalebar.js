/* A scale bar: a round length of at most WIDEST pixels, in µm or mm; in pixels where mpp is unknown. */

const WIDEST = 150;

/** {label, pixels} of the bar, for image pixels of `mpp` µm shown at `scale` CSS pixels each. */
export function barOf(scale, mpp) {
  const unit = mpp ?? 1; // length of an image pixel
  const longest = (WIDEST / scale) * unit;
  const length = roundDown(longest);
  return { label: labelOf(length, mpp !== null), pixels: (length / unit) * scale };
}

/** The largest of 1, 2, 5 · 10ⁿ that is not above `value`. */
function roundDown(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [5, 2, 1].find((each) => each * power <= value * 1.000001) ?? 1;
  return step * power;
}

function labelOf(length, calibrated) {
  if (!calibrated) return `${plain(length)} px`;
  if (length >= 1000) return `${plain(length / 1000)} mm`;
  if (length >= 1) return `${plain(length)} µm`;
  return `${plain(length * 1000)} nm`;
}

const plain = (number) => Number(number.toPrecision(3)).toLocaleString("en");
