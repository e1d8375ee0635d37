// CLIP's byte-level BPE from a tokenizer.json, token for token as the tokenizers library reads it.

const SPLIT = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
const AGAIN = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu; // what ByteLevel splits by
const END = "</w>";

/** The 256 printable characters that stand for bytes, as in GPT-2: printable Latin-1 is itself. */
function byteAlphabet() {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++));
}

export class Tokenizer {
  /**
   * @param {object} content of tokenizer.json
   * @param {{length: number, pad: string}} how many tokens a prompt has, and with which it is filled up
   */
  constructor(content, { length, pad }) {
    const { vocab, merges, unk_token } = content.model;
    this.vocab = new Map(Object.entries(vocab));
    this.names = new Map([...this.vocab].map(([name, id]) => [id, name]));
    const pairs = merges.map((pair) => (typeof pair === "string" ? pair.split(" ") : pair));
    this.ranks = new Map(pairs.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.unknown = this.vocab.get(unk_token);
    this.special = new Map(content.added_tokens.map(({ content: name, id }) => [name, id]));
    [this.start, this.end] = [content.post_processor.cls[1], content.post_processor.sep[1]];
    this.length = length;
    this.pad = this.special.get(pad);
    this.bytes = byteAlphabet();
  }

  /** The ids of a prompt, exactly `length` of them, and the words that found no room. */
  encode(text) {
    const found = this.tokens(text);
    const kept = [this.start, ...found.slice(0, this.length - 2), this.end];
    const ids = [...kept, ...Array(this.length - kept.length).fill(this.pad)];
    return { ids, lost: this.decode(found.slice(this.length - 2)) };
  }

  tokens(text) {
    const names = [...this.special.keys()].map((name) => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    const parts = text.split(new RegExp(`(${names.join("|")})`)); // special tokens are found as written
    return parts.flatMap((part) => this.special.get(part) ?? this.words(part).flatMap((word) => this.merged(word)));
  }

  words(text) {
    const single = text.normalize("NFC").replace(/\p{White_Space}+/gu, " ");
    const lower = Array.from(single, (c) => c.toLowerCase()).join(""); // one by one: no rule for a final sigma
    return (lower.match(SPLIT) ?? []).flatMap((word) => word.match(AGAIN) ?? []);
  }

  /** Ids of one word: of its bytes, the pair that was merged first in training is merged first, again and again. */
  merged(word) {
    const parts = Array.from(new TextEncoder().encode(word), (byte) => this.bytes[byte]);
    parts[parts.length - 1] += END;
    for (;;) {
      let best = { rank: Infinity, at: -1 };
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best.rank) best = { rank, at: i };
      }
      if (best.at < 0) return parts.map((part) => this.vocab.get(part) ?? this.unknown);
      parts.splice(best.at, 2, parts[best.at] + parts[best.at + 1]);
    }
  }

  decode(ids) {
    const known = new Map(this.bytes.map((character, byte) => [character, byte]));
    const text = ids.map((id) => this.names.get(id) ?? "").join("").replaceAll(END, " ");
    const bytes = Array.from(text, (character) => known.get(character) ?? 32);
    return new TextDecoder().decode(Uint8Array.from(bytes)).trim();
  }
}
