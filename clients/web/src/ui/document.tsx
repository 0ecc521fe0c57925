// One document of a dataset.
import { explain, type Failure } from "../api/failure";
import type { Document, IndexError } from "../gen/weft/v1/knowledge_pb";
import { language, words } from "../state/settings";
import { Icon } from "./icons";

interface DocumentRowProps {
  document: Document;
  /** Why it could not be indexed, when the job said so. */
  error: IndexError | undefined;
  onDelete: () => void;
}

export function DocumentRow({ document, error, onDelete }: DocumentRowProps) {
  const t = words.value;
  const wrong = document.error ?? error;
  const failure: Failure | null = wrong ? { reason: wrong.reason as Failure["reason"], message: wrong.message } : null;
  const status = t.status[document.status] ?? document.status;
  const facts = [size(document.bytes), document.chunks ? t.countPassages(document.chunks) : "", failure ? "" : status];
  return (
    <li class="group flex items-center gap-3 rounded-xl px-3 py-2 hover:bg-raised">
      <span class={failure ? "text-danger" : "text-soft"}>
        <Icon name={failure ? "alert" : "file"} />
      </span>
      <div class="min-w-0 flex-1">
        <p class="text-sm font-medium wrap-anywhere">{document.name}</p>
        <p class="text-xs text-soft">{facts.filter(Boolean).join(" · ")}</p>
        {failure && <p class="text-xs text-danger wrap-anywhere">{explain(failure, t)}</p>}
      </div>
      <button
        type="button"
        class="icon-button"
        aria-label={t.deleteDocument(document.name)}
        title={t.delete}
        onClick={onDelete}
      >
        <Icon name="trash" class="size-4.5" />
      </button>
    </li>
  );
}

function size(bytes: number | undefined): string {
  if (bytes === undefined) return "";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(units.length - 1, Math.floor(Math.log(Math.max(bytes, 1)) / Math.log(1000)));
  const format = {
    style: "unit",
    unit: units[power] ?? "byte",
    unitDisplay: "short",
    maximumFractionDigits: 1,
  } as const;
  return new Intl.NumberFormat(language.value, format).format(bytes / 1000 ** power);
}
