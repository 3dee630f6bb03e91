// Foreign text made safe to show: colours are kept, every other control character is shown as what it is.

// Control characters but the tabulator, separators, and what changes the direction of a text.
const UNSAFE = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g;
const SGR = /\u001b\[([0-9;:]*)m/g;

/** Each unsafe character as an escape such as \x1b. */
export function visible(text) {
  return text.replace(UNSAFE, (found) => {
    const code = found.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** A text without colours, and safe. */
export const plain = (text) => visible(text.replace(SGR, ""));

/** What a colour sequence changes of a style; a style is a plain object. */
function change(style, codes) {
  const numbers = codes.split(/[;:]/).map(Number);
  let next = { ...style };
  for (let n = 0; n < numbers.length; n++) {
    const code = numbers[n];
    if (code === 0) next = {};
    else if (code === 1) next.bold = true;
    else if (code === 2) next.dim = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.underline = true;
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
      const [colour, used] = extended(numbers.slice(n + 1));
      next[code === 38 ? "colour" : "back"] = colour;
      n += used;
    }
  }
  return next;
}

function extended([kind, a, b, c]) {
  if (kind === 5) return [a < 16 ? a : palette(a), 2];
  if (kind === 2) return [`rgb(${[a, b, c].map((part) => Math.min(255, part || 0)).join(" ")})`, 4];
  return ["", 1];
}

function palette(number) {
  if (!(number <= 255)) return "";
  if (number >= 232) return `rgb(${[0, 0, 0].fill(8 + (number - 232) * 10).join(" ")})`;
  const steps = [0, 95, 135, 175, 215, 255];
  const place = number - 16;
  return `rgb(${[steps[Math.floor(place / 36)], steps[Math.floor(place / 6) % 6], steps[place % 6]].join(" ")})`;
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
    if (typeof colour === "number" || colour === "page" || colour === "text") classes.push(`${name}-${colour}`);
    else piece.style[name === "f" ? "color" : "backgroundColor"] = colour;
  }
  if (classes.length) piece.className = classes.join(" ");
  element.append(piece);
}
