/* Makes an element look like a fresh one from the server, touching only what differs, so that focus,
   scroll positions and open menus stay. Children that carry data-key are matched by it. */

/** Change `old` into `fresh`. Both have the same tag. */
export function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  syncAttributes(old, fresh);
  const children = [...fresh.childNodes];
  let cursor = old.firstChild;
  for (const wanted of children) {
    const match = partner(old, cursor, wanted);
    if (!match) {
      old.insertBefore(document.importNode(wanted, true), cursor);
      continue;
    }
    if (match !== cursor) old.insertBefore(match, cursor);
    cursor = match.nextSibling;
    if (match.nodeType === Node.ELEMENT_NODE) morph(match, wanted);
    else if (match.data !== wanted.data) match.data = wanted.data;
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

/** The child of `old` that shall become `wanted`: by key where there is one, else by place. */
function partner(old, cursor, wanted) {
  const key = wanted.dataset?.key;
  if (key !== undefined) {
    return [...old.children].find((child) => child.dataset.key === key) ?? null;
  }
  const fits =
    cursor && cursor.nodeName === wanted.nodeName && cursor.dataset?.key === undefined;
  return fits ? cursor : null;
}

function syncAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}
