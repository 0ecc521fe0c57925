// Where people write: the question, files to add, where to search, and the stop button.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import { ask, drafts, setDraft, stop } from "../state/chat";
import { datasets } from "../state/knowledge";
import { availableModels, chosenDatasets, chosenModel } from "../state/search";
import { words } from "../state/settings";
import type { Turn } from "../state/turn";
import { Icon } from "./icons";
import { pickFiles } from "./pick";
import { ScopeDialog } from "./scope";

const MAX_CHARACTERS = 32_000;

export function Composer({ conversationId, running }: { conversationId: string; running: Turn | undefined }) {
  const t = words.value;
  const field = useRef<HTMLTextAreaElement>(null);
  const text = drafts.value[conversationId] ?? "";
  const length = [...text].length;
  const sendable = !running && text.trim() !== "" && length <= MAX_CHARACTERS;

  useEffect(() => {
    // A phone's keyboard would cover the page.
    if (matchMedia("(pointer: fine)").matches) field.current?.focus();
  }, [conversationId]);

  useEffect(() => {
    if (CSS.supports("field-sizing", "content") || !field.current) return;
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight}px`;
  }, [text]);

  const submit = () => {
    if (sendable) ask(text.trim());
  };
  const onKeyDown = (event: KeyboardEvent) => {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  };

  return (
    <form
      class="rounded-3xl border border-line bg-surface p-2 shadow-card transition-colors focus-within:border-strong-line"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <label for="question" class="sr-only">
        {t.question}
      </label>
      <textarea
        id="question"
        ref={field}
        rows={1}
        dir="auto"
        class="block max-h-48 w-full resize-none bg-transparent px-3 py-2 text-base leading-6 field-sizing-content outline-none placeholder:text-soft"
        placeholder={t.placeholder}
        aria-describedby="question-keys"
        value={text}
        onInput={(event) => setDraft(conversationId, event.currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      {length > MAX_CHARACTERS && (
        <p role="alert" class="px-3 pb-1 text-sm text-danger">
          {t.tooLong(length)}
        </p>
      )}
      <div class="flex items-center gap-1">
        <button
          type="button"
          class="icon-button rounded-full"
          aria-label={t.addFiles}
          title={t.addFiles}
          onClick={() => pickFiles()}
        >
          <Icon name="attach" />
        </button>
        <ScopeButton />
        <ModelChoice />
        <span class="flex-1" />
        {/* Keys: the same element turned into a submit button under the click would submit. */}
        {running ? (
          <button
            key="stop"
            type="button"
            class="inline-flex size-10 items-center justify-center rounded-full bg-ink text-ground"
            aria-label={t.stop}
            title={t.stop}
            onClick={() => {
              stop(running);
              field.current?.focus();
            }}
          >
            <Icon name="stop" />
          </button>
        ) : (
          <button
            key="send"
            type="submit"
            class="inline-flex size-10 items-center justify-center rounded-full bg-accent text-on-accent transition-colors hover:bg-accent-strong disabled:bg-raised disabled:text-soft"
            aria-label={t.send}
            title={t.send}
            disabled={!sendable}
          >
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}

function ScopeButton() {
  const t = words.value;
  const open = useSignal(false);
  const chosen = chosenDatasets.value.length;
  if ((datasets.value?.length ?? 0) < 2 && chosen === 0) return null;
  const label = chosen === 0 ? t.searchAll : t.searchSome(chosen);
  return (
    <>
      <button
        type="button"
        class="inline-flex h-9 min-w-0 items-center gap-1.5 rounded-full px-3 text-sm text-soft transition-colors hover:bg-raised hover:text-ink"
        aria-haspopup="dialog"
        onClick={() => (open.value = true)}
      >
        <Icon name="search" class="size-4" />
        <span class="sr-only">{t.searchIn}: </span>
        <span class="truncate">{label}</span>
      </button>
      {open.value && <ScopeDialog onClose={() => (open.value = false)} />}
    </>
  );
}

function ModelChoice() {
  const t = words.value;
  if (availableModels.value.length < 2) return null;
  return (
    <label class="min-w-0">
      <span class="sr-only">{t.model}</span>
      <select
        class="h-9 max-w-40 truncate rounded-full bg-transparent px-2 text-sm text-soft hover:bg-raised"
        value={chosenModel.value}
        onChange={(event) => (chosenModel.value = event.currentTarget.value)}
      >
        {availableModels.value.map((model, index) => (
          <option key={model.modelId} value={index === 0 ? "" : model.modelId}>
            {model.modelId}
          </option>
        ))}
      </select>
    </label>
  );
}
