// A question and its answer.
import { signal } from "@preact/signals";

import { failureOf, type Failure } from "../api/failure";
import { CopyButton, Markdown } from "../markdown/markdown";
import { rate, retry } from "../state/chat";
import { words } from "../state/settings";
import type { Turn } from "../state/turn";
import { Problem } from "./dialog";
import { Icon } from "./icons";
import { openSource, SourceList } from "./sources";

export function TurnView({ turn, last }: { turn: Turn; last: boolean }) {
  const t = words.value;
  return (
    <article class="space-y-5" aria-busy={turn.running}>
      <div class="flex justify-end">
        <h2 class="sr-only">{t.you}</h2>
        <p
          class="max-w-[85%] rounded-2xl rounded-br-md bg-tint px-4 py-2.5 whitespace-pre-wrap wrap-anywhere"
          dir="auto"
        >
          {turn.question}
        </p>
      </div>
      <div>
        <h2 class="sr-only">{t.assistant}</h2>
        <Answer turn={turn} last={last} />
      </div>
    </article>
  );
}

function Answer({ turn, last }: { turn: Turn; last: boolean }) {
  const references = turn.references.value;
  const text = turn.text.value;
  const open = (id: number) => openSource(references, id);
  return (
    <>
      {text && (
        <div dir="auto">
          <Markdown source={text} references={references} pending={turn.running} onOpen={open} />
        </div>
      )}
      <State turn={turn} last={last} />
      {!turn.running && references.length > 0 && <SourceList text={text} references={references} />}
      {!turn.running && <Degraded turn={turn} />}
      {!turn.running && text && <Actions turn={turn} />}
    </>
  );
}

function State({ turn, last }: { turn: Turn; last: boolean }) {
  const t = words.value;
  const again = last ? () => retry(turn) : undefined;
  switch (turn.status.value) {
    case "waiting":
      return <Waiting text={t.thinking} />;
    case "reconnecting":
      return <Waiting text={t.reconnecting} />;
    case "streaming":
      return turn.text.value ? null : <Waiting text={t.thinking} />;
    case "complete":
      return null;
    case "cancelled":
      return <p class="mt-3 text-sm text-soft">{turn.request ? t.stopped : t.wasStopped}</p>;
    case "lost":
      return <Problem failure={{ reason: "", message: t.lost }} onRetry={again} />;
    default: {
      const said = turn.status.value === "interrupted" ? t.wasCut : t.wasFailed;
      const failure: Failure = turn.failure.value ?? { reason: "", message: said };
      return <Problem failure={failure} onRetry={again} />;
    }
  }
}

function Waiting({ text }: { text: string }) {
  return (
    <p class="mt-3 flex items-center gap-3 text-sm text-soft">
      <span class="flex gap-1" aria-hidden="true">
        <span class="pulse size-1.5 rounded-full bg-accent" />
        <span class="pulse size-1.5 rounded-full bg-accent" />
        <span class="pulse size-1.5 rounded-full bg-accent" />
      </span>
      {text}
    </p>
  );
}

function Degraded({ turn }: { turn: Turn }) {
  const notes = turn.degraded.value.map((what) => words.value.degraded[what]).filter(Boolean);
  return notes.length > 0 ? <p class="mt-3 text-xs text-soft">{notes.join(" ")}</p> : null;
}

const ratingFailure = signal<{ turn: Turn; failure: Failure } | null>(null);

function Actions({ turn }: { turn: Turn }) {
  const t = words.value;
  const give = async (rating: "up" | "down") => {
    ratingFailure.value = null;
    try {
      await rate(turn, turn.rating.value === rating ? "" : rating);
    } catch (error) {
      ratingFailure.value = { turn, failure: { ...failureOf(error), message: t.rateFailed } };
    }
  };
  const button = (rating: "up" | "down", label: string) => (
    <button
      type="button"
      class={`icon-button ${turn.rating.value === rating ? "bg-tint text-accent" : ""}`}
      aria-label={label}
      title={label}
      aria-pressed={turn.rating.value === rating}
      onClick={() => void give(rating)}
    >
      <Icon name={rating} class="size-4.5" />
    </button>
  );
  return (
    <>
      <div class="mt-2 -ml-2 flex gap-1">
        <CopyButton label={t.copyAnswer} text={() => turn.text.value} />
        {turn.status.value === "complete" && button("up", t.good)}
        {turn.status.value === "complete" && button("down", t.bad)}
      </div>
      {ratingFailure.value?.turn === turn && <Problem failure={ratingFailure.value.failure} />}
    </>
  );
}
