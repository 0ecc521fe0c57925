// The passages that an answer rests on: a list under it, and a sheet that shows one of them.
import { signal } from "@preact/signals";

import type { Reference } from "../gen/weft/v1/common_pb";
import { cited } from "../markdown/parse";
import { words } from "../state/settings";
import { Dialog } from "./dialog";
import { Icon } from "./icons";

const shown = signal<{ references: readonly Reference[]; id: number } | null>(null);

export function openSource(references: readonly Reference[], id: number): void {
  if (references.some((one) => one.id === id)) shown.value = { references, id };
}

function place(reference: Reference): string {
  const page = reference.page === undefined ? "" : words.value.pageShort(reference.page);
  return [page, reference.heading].filter(Boolean).join(" · ");
}

/** What the text cites is shown; what was only looked at can be unfolded. */
export function SourceList({ text, references }: { text: string; references: readonly Reference[] }) {
  const t = words.value;
  const numbers = cited(text);
  const named = references.filter((one) => numbers.has(one.id));
  const others = references.filter((one) => !numbers.has(one.id));
  return (
    <section class="mt-5 space-y-3">
      {named.length > 0 && (
        <>
          <h3 class="mb-2 text-xs font-semibold tracking-wide text-soft">{t.sources}</h3>
          <Cards shown={named} all={references} />
        </>
      )}
      {others.length > 0 && (
        <details>
          <summary class="w-fit rounded-md text-xs text-soft hover:text-ink">
            {named.length > 0 ? t.alsoRead(others.length) : t.onlyRead(others.length)}
          </summary>
          <div class="mt-2">
            <Cards shown={others} all={references} />
          </div>
        </details>
      )}
    </section>
  );
}

function Cards({ shown: list, all }: { shown: readonly Reference[]; all: readonly Reference[] }) {
  return (
    <ol class="grid gap-2 sm:grid-cols-2">
      {list.map((one) => (
        <li key={one.id} class="min-w-0">
          <button
            type="button"
            class="flex w-full items-center gap-2.5 rounded-xl border border-line bg-surface px-3 py-2 text-left transition-colors hover:border-accent"
            onClick={() => openSource(all, one.id)}
          >
            <span class="sr-only">{words.value.source(one.id)}: </span>
            <span class="cite m-0 translate-y-0" aria-hidden="true">
              {one.id}
            </span>
            <span class="min-w-0 flex-1 text-sm leading-snug">
              <span class="block truncate font-medium">{one.name}</span>
              <span class="block truncate text-xs text-soft">{place(one) || "\u00a0"}</span>
            </span>
          </button>
        </li>
      ))}
    </ol>
  );
}

export function SourceSheet() {
  if (!shown.value) return null;
  const { references, id } = shown.value;
  const index = references.findIndex((one) => one.id === id);
  const reference = references[index];
  if (!reference) return null;
  const t = words.value;
  const step = (by: number) => {
    const next = references[index + by];
    if (next) shown.value = { references, id: next.id };
  };
  return (
    <Dialog title={reference.name} class="sheet p-6 sm:p-8" onClose={() => (shown.value = null)}>
      <dl class="mt-2 flex flex-wrap gap-x-5 gap-y-1 text-sm text-soft">
        <div>
          <dt class="sr-only">{t.sources}</dt>
          <dd>{t.source(reference.id)}</dd>
        </div>
        {reference.page !== undefined && (
          <div>
            <dt class="sr-only">{t.page(reference.page)}</dt>
            <dd>{t.page(reference.page)}</dd>
          </div>
        )}
        {reference.heading && (
          <div class="min-w-0">
            <dt class="sr-only">{t.heading}</dt>
            <dd class="wrap-anywhere">{reference.heading}</dd>
          </div>
        )}
      </dl>
      {/* The passage as it stands in the file: text, never markup. */}
      <blockquote
        class="mt-5 min-h-0 overflow-y-auto rounded-xl border-l-4 border-accent bg-raised px-5 py-4 leading-7 whitespace-pre-wrap wrap-anywhere"
        dir="auto"
        tabIndex={0}
      >
        {reference.content}
      </blockquote>
      {references.length > 1 && (
        <footer class="mt-auto flex items-center justify-between pt-5">
          <button type="button" class="button" disabled={index === 0} onClick={() => step(-1)}>
            <Icon name="left" />
            <span class="max-sm:sr-only">{t.previous}</span>
          </button>
          <span class="text-sm text-soft tabular-nums">
            {index + 1} / {references.length}
          </span>
          <button type="button" class="button" disabled={index === references.length - 1} onClick={() => step(1)}>
            <span class="max-sm:sr-only">{t.next}</span>
            <Icon name="right" />
          </button>
        </footer>
      )}
    </Dialog>
  );
}
