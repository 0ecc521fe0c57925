// The files that are being added: how far each one is, and what became of it.
import { explain } from "../api/failure";
import { progress } from "../state/knowledge";
import { words } from "../state/settings";
import { cancelUpload, clearUploads, underWay, uploads, type Upload } from "../state/uploads";
import { Icon } from "./icons";

export function UploadTray() {
  const t = words.value;
  const all = uploads.value;
  if (all.length === 0) return null;
  const allDone = !all.some(underWay);
  return (
    <section class="mb-3 rounded-2xl border border-line bg-surface p-3 shadow-card" aria-label={t.uploads}>
      <ul class="max-h-44 space-y-1 overflow-y-auto">
        {all.map((one, index) => (
          <UploadRow key={index} one={one} />
        ))}
      </ul>
      {allDone && (
        <button type="button" class="mt-1 ml-2 min-h-8 text-sm text-accent hover:underline" onClick={clearUploads}>
          {t.clear}
        </button>
      )}
    </section>
  );
}

function UploadRow({ one }: { one: Upload }) {
  const t = words.value;
  const { step, percent, failure } = one.state.value;
  const share = step === "uploading" ? percent / 100 : (progress.value[one.datasetId] ?? 0);
  const good = step === "ready" || step === "duplicate";
  const bad = step === "refused";
  const cancellable = step === "waiting" || step === "uploading";
  return (
    <li class="flex items-center gap-3 rounded-xl px-2 py-1.5">
      <span class={good ? "text-accent" : bad ? "text-danger" : "text-soft"}>
        <Icon name={good ? "check" : bad ? "alert" : "file"} />
      </span>
      <div class="min-w-0 flex-1 text-sm">
        <p class="truncate font-medium">{one.name}</p>
        <p class={`text-xs wrap-anywhere ${bad ? "text-danger" : "text-soft"}`}>
          {failure ? explain(failure, t) : label(step, percent, share)}
        </p>
        {(step === "uploading" || step === "stored") && (
          <progress class="mt-1.5" max={1} value={share} aria-label={one.name} />
        )}
      </div>
      {cancellable && (
        <button
          type="button"
          class="icon-button"
          aria-label={t.cancelUpload(one.name)}
          onClick={() => cancelUpload(one)}
        >
          <Icon name="close" class="size-4" />
        </button>
      )}
    </li>
  );
}

function label(step: Upload["state"]["value"]["step"], percent: number, share: number): string {
  const t = words.value;
  switch (step) {
    case "waiting":
      return t.waiting;
    case "uploading":
      return percent === 100 ? t.storing : t.uploading(percent);
    case "stored":
      return t.indexing(Math.floor(share * 100));
    case "duplicate":
      return t.duplicate;
    case "ready":
      return t.ready;
    case "cancelled":
      return t.uploadCancelled;
    case "refused":
      return t.refused;
  }
}
