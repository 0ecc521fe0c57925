// A conversation, or the first screen of a new one, and the composer under it.
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { conversation, load, stop, type OpenConversation } from "../state/chat";
import { words } from "../state/settings";
import { TurnView } from "./answer";
import { Announcer } from "./announcer";
import { Composer } from "./composer";
import { Problem } from "./dialog";
import { Icon } from "./icons";
import { covered } from "./sidebar";
import { UploadTray } from "./uploads";
import { Welcome } from "./welcome";

/** Within this distance of the end the page follows the answer, in pixels. */
const FOLLOW_WITHIN = 80;

export function ChatView({ id }: { id: string }) {
  const open = id ? conversation(id) : null;
  const running = open?.turns.value.find((turn) => turn.running);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key !== "Escape" || !running || event.isComposing) return;
      if (!covered() && !document.querySelector("dialog[open]")) stop(running);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [running]);
  return (
    <>
      <Scroller key={id} turns={open?.turns.value.length ?? 0}>
        {open ? <Turns open={open} /> : <Welcome />}
      </Scroller>
      <div class="mx-auto w-full max-w-3xl px-3 pb-3 sm:px-6 sm:pb-5">
        <UploadTray />
        <Composer conversationId={id} running={running} />
        <p id="question-keys" class="mt-2 hidden text-center text-xs text-soft sm:block">
          {words.value.keys}
        </p>
      </div>
      <Announcer turn={open?.turns.value.at(-1)} />
    </>
  );
}

function Turns({ open }: { open: OpenConversation }) {
  const t = words.value;
  const turns = open.turns.value;
  const state = open.state.value;
  return (
    <div class="mx-auto max-w-3xl space-y-10 px-4 pt-8 pb-10 sm:px-6">
      <h1 class="sr-only">{turns[0]?.question ?? t.untitled}</h1>
      {state === "loading" && turns.length === 0 && <p class="text-soft">{t.loading}</p>}
      {state === "missing" && <p class="text-soft">{t.chatMissing}</p>}
      {typeof state === "object" && <Problem failure={state} onRetry={() => void load(open)} />}
      {turns.map((turn, index) => (
        <TurnView key={turn.requestId} turn={turn} last={index === turns.length - 1} />
      ))}
    </div>
  );
}

/** Scrolls its content; stays at the end while the person is there. */
function Scroller({ turns, children }: { turns: number; children: preact.ComponentChildren }) {
  const outer = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const atEnd = useSignal(true);
  const toEnd = () => outer.current?.scrollTo({ top: outer.current.scrollHeight });

  useLayoutEffect(() => {
    if (turns === 0) return;
    atEnd.value = true;
    toEnd();
  }, [turns]);
  useEffect(() => {
    if (!inner.current) return;
    const observer = new ResizeObserver(() => turns > 0 && atEnd.peek() && toEnd());
    observer.observe(inner.current);
    if (outer.current) observer.observe(outer.current); // the composer grows
    return () => observer.disconnect();
  }, [turns > 0]);

  const onScroll = () => {
    const box = outer.current;
    if (box) atEnd.value = box.scrollHeight - box.scrollTop - box.clientHeight < FOLLOW_WITHIN;
  };
  return (
    <div class="relative min-h-0 flex-1">
      <div ref={outer} class="h-full overflow-y-auto overscroll-contain" onScroll={onScroll}>
        <div ref={inner} class="min-h-full">
          {children}
        </div>
      </div>
      {!atEnd.value && turns > 0 && (
        <button
          type="button"
          class="absolute bottom-3 left-1/2 inline-flex size-10 -translate-x-1/2 items-center justify-center rounded-full border border-line bg-surface shadow-card"
          aria-label={words.value.latest}
          title={words.value.latest}
          onClick={toEnd}
        >
          <Icon name="bottom" />
        </button>
      )}
    </div>
  );
}
