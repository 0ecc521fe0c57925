// Choosing the datasets that a chat searches.
import { datasetName, datasets } from "../state/knowledge";
import { chosenDatasets } from "../state/search";
import { words } from "../state/settings";
import { Dialog } from "./dialog";

export function ScopeDialog({ onClose }: { onClose: () => void }) {
  const t = words.value;
  const chosen = new Set(chosenDatasets.value);
  const choose = (id: string, on: boolean) => {
    if (on) chosen.add(id);
    else chosen.delete(id);
    chosenDatasets.value = [...chosen];
  };
  return (
    <Dialog title={t.searchTitle} onClose={onClose}>
      <p class="mt-2 text-sm text-soft">{t.searchText}</p>
      <ul class="mt-4 max-h-[50dvh] space-y-1 overflow-y-auto">
        {datasets.value?.map((dataset) => (
          <li key={dataset.datasetId}>
            <label class="flex min-h-11 cursor-pointer items-center gap-3 rounded-xl px-3 hover:bg-raised">
              <input
                type="checkbox"
                class="size-4.5 accent-accent"
                checked={chosen.has(dataset.datasetId)}
                onChange={(event) => choose(dataset.datasetId, event.currentTarget.checked)}
              />
              <span class="min-w-0 flex-1 truncate">{datasetName(dataset, t)}</span>
              <span class="text-xs text-soft">{t.countDocuments(dataset.documents ?? 0)}</span>
            </label>
          </li>
        ))}
      </ul>
      <div class="mt-5 flex justify-end gap-3">
        <button type="button" class="button" onClick={() => (chosenDatasets.value = [])}>
          {t.searchAll}
        </button>
        <button type="button" class="button button-main" onClick={onClose}>
          {t.done}
        </button>
      </div>
    </Dialog>
  );
}
