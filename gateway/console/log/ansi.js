// Foreign text made safe to show: colours are kept, every other control character is shown as what it is.

// Control characters but the tabulator, separators, what changes the direction of a text, and what nobody sees; but not
// the joiners U+200C and U+200D, by which letters and pictures look as they should.
const UNSAFE = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
/** Relative luminance, by WCAG, that has a contrast of 4.5 to 1 upon the page. */
const LEAST_LIGHT = 0.207;
const SGR = /\u001b\[([0-9;:]*)m/g;

/** Each unsafe character as an escape such as \x1b. */
export function visible(text) {
  return text.replace(UNSAFE, (found) => {
    const code = found.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\u{${code.toString(16)}}`;
  });
}

/** A text without colours, and safe. */
export const plain = (text) => visible(text.replace(SGR, ""));

/**
 * What a colour sequence changes of a style; a style is a plain object, its colours are numbers of the palette or lists of
 * red, green and blue. A parameter may have parts, by the rules of ITU-T T.416: 4:3, 38:2::255:0:0.
 */
function change(style, codes) {
  const parameters = codes.split(";").map((parameter) => parameter.split(":").map(Number));
  let next = { ...style };
  for (let n = 0; n < parameters.length; n++) {
    const [code, ...parts] = parameters[n];
    if (code === 0) next = {};
    else if (code === 1) next.bold = true;
    else if (code === 2) next.dim = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.underline = parts[0] !== 0;
    else if (code === 7) next.inverse = true;
    else if (code === 22) next.bold = next.dim = false;
    else if (code === 23) next.italic = false;
    else if (code === 24) next.underline = false;
    else if (code === 27) next.inverse = false;
    else if (code === 39) next.colour = "";
    else if (code === 49) next.back = "";
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) next.colour = code < 90 ? code - 30 : code - 82;
    else if ((code >= 40 && code <= 47) || (code >= 100 && code <= 107)) next.back = code < 100 ? code - 40 : code - 92;
    else if (code === 38 || code === 48) {
      // Behind the kind 2 there may be the number of a colour space.
      const own = parts[0] === 2 && parts.length > 4 ? [2, ...parts.slice(2)] : parts;
      const [colour, used] = extended(own.length ? own : parameters.slice(n + 1).map(([each]) => each));
      next[code === 38 ? "colour" : "back"] = colour;
      n += own.length ? 0 : used;
    }
  }
  return next;
}

function extended([kind, a, b, c]) {
  if (kind === 5) return [a < 16 ? a : palette(a), 2];
  if (kind === 2) return [[a, b, c].map((part) => Math.min(255, part || 0)), 4];
  return ["", 1];
}

function palette(number) {
  if (!(number <= 255)) return "";
  if (number >= 232) return [0, 0, 0].fill(8 + (number - 232) * 10);
  const steps = [0, 95, 135, 175, 215, 255];
  const place = number - 16;
  return [steps[Math.floor(place / 36)], steps[Math.floor(place / 6) % 6], steps[place % 6]];
}

/** A colour of letters, made so light that it can be read upon the page, which is dark. */
function legible(colour) {
  let found = colour;
  for (let white = 1; luminance(found) < LEAST_LIGHT; white++) {
    found = colour.map((part) => Math.round(part + ((255 - part) * white) / 16));
  }
  return found;
}

function luminance(colour) {
  const [red, green, blue] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** The style after a text that begins in one. */
export function styleAfter(text, style) {
  if (!text.includes("\u001b")) return style;
  let found = style;
  for (const match of text.matchAll(SGR)) found = change(found, match[1]);
  return found;
}

/** Show a text that begins in a style as the content of an element. */
export function show(element, text, style) {
  if (!text.includes("\u001b") && !Object.keys(style).length) {
    element.textContent = visible(text);
    return;
  }
  element.replaceChildren();
  let place = 0;
  let current = style;
  for (const match of text.matchAll(SGR)) {
    add(element, text.slice(place, match.index), current);
    current = change(current, match[1]);
    place = match.index + match[0].length;
  }
  add(element, text.slice(place), current);
}

function add(element, text, style) {
  if (!text) return;
  const piece = document.createElement("span");
  piece.textContent = visible(text);
  const [front, back] = style.inverse ? [style.back || "page", style.colour || "text"] : [style.colour, style.back];
  const classes = ["bold", "dim", "italic", "underline"].filter((name) => style[name]);
  for (const [name, colour] of [["f", front], ["b", back]]) {
    if (colour === undefined || colour === "") continue;
    if (!Array.isArray(colour)) classes.push(`${name}-${colour}`);
    else if (name === "b") piece.style.backgroundColor = `rgb(${colour.join(" ")})`;
    else piece.style.color = `rgb(${(back ? colour : legible(colour)).join(" ")})`;
  }
  if (classes.length) piece.className = classes.join(" ");
  element.append(piece);
}
