// Frames of a log as lines. A line may be cut anywhere between two frames of its channel.

import { isGrave, news } from "../lib/words.js";
import { styleAfter } from "./ansi.js";

/** A longer line is shown in pieces. */
const LINE_CHARACTERS = 8_192;
const SOURCES = { CHANNEL_STDOUT: "out", CHANNEL_STDERR: "err", CHANNEL_SYSTEM: "site", CHANNEL_DEBUG: "debug" };
const TONES = { SEVERITY_WARNING: "warn", SEVERITY_ERROR: "bad" };

function decoded(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = binary.charCodeAt(n);
  return bytes;
}

/** Of which source the lines of a channel are. */
export const sourceOfChannel = (channel) => SOURCES[channel] ?? "out";

/** Of which source the lines of a frame are. */
export function sourceOf({ chunk, notice }) {
  if (chunk) return sourceOfChannel(chunk.channel);
  return notice?.severity === "SEVERITY_DEBUG" ? "debug" : "site";
}

/** How many bytes of output a frame holds. */
export const outputBytes = (frame) => (frame.chunk ? (frame.chunk.data.length * 3) / 4 : 0);

/**
 * Makes lines: {source, text, style, time, sequence, last, tone, open}; `last` is the frame that added to it last. One that
 * is `open` may go on; when it does, `grown` holds it until somebody has taken it from there.
 */
export class LineMaker {
  constructor() {
    this._channels = new Map();
    this.grown = new Set();
  }

  /** The lines that a frame begins. */
  frame(frame) {
    const sequence = Number(frame.sequence);
    const source = sourceOf(frame);
    if (frame.chunk) return this._chunk(frame.chunk, source, frame.time, sequence);
    const notice = frame.notice;
    if (!notice) return [];
    const text = notice.text || (notice.progress ? `${notice.progress.percent} % ${notice.progress.text}`.trim() : "");
    if (!text) return [];
    const tone = TONES[notice.severity] ?? "";
    return text.split("\n").map((each) => ({ source, text: each, style: {}, time: frame.time, sequence, tone }));
  }

  /** The lines of an entry of the history. */
  entry(entry) {
    const text = news(entry);
    if (!text) return [];
    const tone = isGrave(entry) ? "bad" : "";
    return [{ source: "server", text, style: {}, time: entry.time, sequence: 0, tone, entry: Number(entry.sequence) }];
  }

  /** Have a line not go on any more: what would be added to it begins another. */
  end(line) {
    const channel = this._channels.get(line.source);
    if (channel?.open === line) this._close(channel);
  }

  _chunk(chunk, source, time, sequence) {
    let channel = this._channels.get(source);
    if (!channel) {
      channel = { decoder: new TextDecoder(), open: null, style: {}, returned: false };
      this._channels.set(source, channel);
    }
    let text = channel.decoder.decode(decoded(chunk.data), { stream: true });
    if (channel.returned && text) {
      text = text.replace(/^\n/, "");
      channel.returned = false;
    }
    if (text.endsWith("\r")) channel.returned = true;
    const pieces = text.split(/\r\n|\n|\r/);
    const made = [];
    pieces.forEach((piece, n) => {
      const last = n === pieces.length - 1;
      this._add(channel, source, piece, time, sequence, made);
      if (!last && channel.open) this._close(channel);
      else if (!last) made.push(this._line(channel, source, "", time, sequence, false));
    });
    return made;
  }

  _add(channel, source, piece, time, sequence, made) {
    let rest = piece;
    while (rest) {
      if (!channel.open) {
        channel.open = this._line(channel, source, "", time, sequence, true);
        made.push(channel.open);
      } else if (!made.includes(channel.open)) this.grown.add(channel.open);
      const room = LINE_CHARACTERS - channel.open.text.length;
      channel.open.text += rest.slice(0, room);
      channel.open.last = sequence;
      rest = rest.slice(room);
      if (rest) this._close(channel);
    }
  }

  _close(channel) {
    channel.open.open = false;
    channel.style = styleAfter(channel.open.text, channel.style);
    channel.open = null;
  }

  _line(channel, source, text, time, sequence, open) {
    return { source, text, style: channel.style, time, sequence, last: sequence, tone: "", open };
  }
}
