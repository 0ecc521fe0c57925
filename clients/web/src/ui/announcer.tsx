// Tells a screen reader what happens: whole sentences of the answer as they are finished, never
// single tokens, and the end of an upload.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { explain } from "../api/failure";
import { plainText } from "../markdown/parse";
import { words } from "../state/settings";
import type { Turn } from "../state/turn";

const said = signal<readonly { id: number; text: string }[]>([]);
let count = 0;
/** What was said is kept for a while: taken away at once it would not be read. */
const KEEP = 8;
const SAY_EVERY_MS = 1200;
const SENTENCE_END = /[.!?…]["')\]]*\s|[。！？；]["'”’）]*|\n/g;

export function announce(text: string): void {
  if (text) said.value = [...said.value.slice(-KEEP), { id: (count += 1), text }];
}

export function Announcer({ turn }: { turn: Turn | undefined }) {
  useEffect(() => {
    if (!turn?.running) return;
    const told = { length: turn.text.peek().length };
    announce(words.peek().answering);
    const timer = setInterval(() => {
      tell(turn, told);
      if (turn.running) return;
      clearInterval(timer);
      const failure = turn.failure.peek();
      announce(failure ? explain(failure, words.peek()) : words.peek().answered);
    }, SAY_EVERY_MS);
    return () => clearInterval(timer);
  }, [turn]);
  return (
    <div class="sr-only" role="log" aria-live="polite">
      {said.value.map(({ id, text }) => (
        <p key={id}>{text}</p>
      ))}
    </div>
  );
}

/** Says the sentences that were finished since the last time; at the end, what is left. */
function tell(turn: Turn, told: { length: number }): void {
  const fresh = turn.text.peek().slice(told.length);
  const ends = [...fresh.matchAll(SENTENCE_END)].map((found) => found.index + found[0].length);
  const end = turn.running ? (ends.at(-1) ?? 0) : fresh.length;
  told.length += end;
  announce(plainText(fresh.slice(0, end)));
}
