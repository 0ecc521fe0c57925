// Making a dataset.
import { useState } from "preact/hooks";

import { failureOf, type Failure } from "../api/failure";
import { createDataset } from "../state/knowledge";
import { words } from "../state/settings";
import { Dialog, Problem } from "./dialog";

export function NewDataset({ onClose }: { onClose: (madeId?: string) => void }) {
  const t = words.value;
  const [name, setName] = useState("");
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const make = async () => {
    setBusy(true);
    try {
      onClose(await createDataset(name.trim()));
    } catch (error) {
      setFailure(failureOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={t.newDataset} onClose={() => onClose()}>
      <form
        class="mt-2"
        onSubmit={(event) => {
          event.preventDefault();
          void make();
        }}
      >
        <p class="text-sm text-soft">{t.newDatasetText}</p>
        <label class="mt-4 block text-sm font-medium">
          {t.datasetName}
          <input
            class="field mt-1 font-normal"
            autofocus
            required
            maxLength={200}
            value={name}
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </label>
        {failure && <Problem failure={failure} />}
        <div class="mt-6 flex justify-end gap-3">
          <button type="button" class="button" onClick={() => onClose()}>
            {t.cancel}
          </button>
          <button type="submit" class="button button-main" disabled={busy || name.trim() === ""}>
            {t.create}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
