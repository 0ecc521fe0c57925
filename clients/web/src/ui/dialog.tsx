// Dialogs on the browser's own <dialog>: it keeps the focus inside, closes on Esc and gives the
// focus back.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";

import { explain, failureOf, type Failure } from "../api/failure";
import { words } from "../state/settings";
import { Icon } from "./icons";

interface DialogProps {
  title: string;
  /** Absent: the dialog cannot be closed without an answer. */
  onClose?: () => void;
  class?: string;
  children: ComponentChildren;
}

/** Open for as long as it is rendered. */
export function Dialog({ title, onClose, class: kind = "box", children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  const titleId = useId();
  const gone = useRef(false);
  useEffect(() => {
    const dialog = element.current;
    const opener = document.activeElement;
    dialog?.showModal();
    return () => {
      gone.current = true;
      dialog?.close();
      if (opener instanceof HTMLElement) opener.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={kind}
      aria-labelledby={titleId}
      onCancel={(event) => {
        event.preventDefault();
        onClose?.();
      }}
      onClose={() => {
        // Esc pressed twice closes a dialog whatever `cancel` says.
        if (gone.current) return;
        if (onClose) onClose();
        else element.current?.showModal();
      }}
      onClick={(event) => {
        if (event.target === element.current) onClose?.();
      }}
    >
      <div class="flex min-h-0 flex-1 flex-col">
        <header class="flex items-start justify-between gap-4">
          <h2 id={titleId} class="text-lg leading-snug font-semibold wrap-anywhere">
            {title}
          </h2>
          {onClose && (
            <button type="button" class="icon-button -mt-1 -mr-1" aria-label={words.value.close} onClick={onClose}>
              <Icon name="close" />
            </button>
          )}
        </header>
        {children}
      </div>
    </dialog>
  );
}

interface Question {
  title: string;
  text: string;
  act: () => Promise<void>;
}
const question = signal<Question | null>(null);

/** Asks before something is deleted, does it, and says what went wrong. */
export function confirmDelete(title: string, text: string, act: () => Promise<void>): void {
  question.value = { title, text, act };
}

export function ConfirmDialog() {
  const asked = question.value;
  return asked && <Confirm key={asked.title + asked.text} {...asked} />;
}

function Confirm({ title, text, act }: Question) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const close = () => (question.value = null);
  const go = async () => {
    setBusy(true);
    try {
      await act();
      close();
    } catch (error) {
      setFailure(failureOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onClose={close}>
      <p class="mt-3 text-soft wrap-anywhere">{text}</p>
      {failure && <Problem failure={failure} />}
      <div class="mt-6 flex justify-end gap-3">
        <button type="button" class="button" autofocus onClick={close}>
          {words.value.cancel}
        </button>
        <button type="button" class="button button-danger" disabled={busy} onClick={() => void go()}>
          {words.value.delete}
        </button>
      </div>
    </Dialog>
  );
}

/** A failure in plain words, with a button where trying again may help. */
export function Problem({ failure, onRetry }: { failure: Failure; onRetry?: (() => void) | undefined }) {
  return (
    <div
      role="alert"
      class="mt-3 flex flex-wrap items-center gap-3 rounded-xl bg-danger-tint px-4 py-3 text-sm text-danger"
    >
      <Icon name="alert" />
      <p class="min-w-0 flex-1 wrap-anywhere">{explain(failure, words.value)}</p>
      {onRetry && (
        <button type="button" class="button min-h-9" onClick={onRetry}>
          {words.value.retry}
        </button>
      )}
    </div>
  );
}
