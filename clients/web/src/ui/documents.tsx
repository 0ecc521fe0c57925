// The documents: datasets, what is in them, and what state they are in.
import { useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";

import { failureOf, type Failure } from "../api/failure";
import type { Dataset, Document } from "../gen/weft/v1/knowledge_pb";
import { prepare } from "../state/indexing";
import {
  datasetName,
  datasets,
  datasetsFailure,
  deleteDataset,
  deleteDocument,
  documents,
  indexErrors,
  loadDatasets,
  loadDocuments,
  progress,
} from "../state/knowledge";
import { documentsLink, go } from "../state/route";
import { words } from "../state/settings";
import { confirmDelete, Problem } from "./dialog";
import { DocumentRow } from "./document";
import { Icon } from "./icons";
import { NewDataset } from "./new_dataset";
import { pickFiles } from "./pick";
import { UploadTray } from "./uploads";

export function DocumentsView({ id }: { id: string }) {
  const t = words.value;
  const creating = useSignal(false);
  const list = datasets.value;
  const only = list?.length === 1 ? list[0]?.datasetId : undefined;
  useEffect(() => void loadDatasets(), []);
  return (
    <div class="mx-auto max-w-3xl px-4 py-8 sm:px-6 sm:py-12">
      <div class="flex flex-wrap items-end justify-between gap-4">
        <div>
          <h1 class="text-2xl font-semibold tracking-tight">{t.documents}</h1>
          <p class="mt-1 text-soft">{t.documentsText}</p>
        </div>
        <div class="flex flex-wrap gap-2">
          <button type="button" class="button" onClick={() => (creating.value = true)}>
            <Icon name="plus" />
            {t.newDataset}
          </button>
          <button type="button" class="button button-main" onClick={() => pickFiles(id || undefined)}>
            {t.addFiles}
          </button>
        </div>
      </div>
      <div class="mt-6">
        <UploadTray />
      </div>
      {datasetsFailure.value && !list && (
        <Problem failure={{ reason: "", message: t.datasetsFailed }} onRetry={() => void loadDatasets()} />
      )}
      {!list && !datasetsFailure.value && <p class="mt-6 text-soft">{t.loading}</p>}
      {list?.length === 0 && <Nothing />}
      <div class="mt-4 space-y-4">
        {list?.map((dataset) => (
          <DatasetCard key={dataset.datasetId} dataset={dataset} open={dataset.datasetId === (id || only)} />
        ))}
      </div>
      {creating.value && (
        <NewDataset
          onClose={(made) => {
            creating.value = false;
            if (made) go(documentsLink(made));
          }}
        />
      )}
    </div>
  );
}

function Nothing() {
  const t = words.value;
  return (
    <div class="mt-4 rounded-3xl border-2 border-dashed border-line bg-surface px-6 py-12 text-center">
      <p class="text-lg font-medium">{t.noDatasets}</p>
      <p class="mt-1 text-sm text-soft">{t.step1Text}</p>
    </div>
  );
}

function DatasetCard({ dataset, open }: { dataset: Dataset; open: boolean }) {
  const t = words.value;
  const id = dataset.datasetId;
  const name = datasetName(dataset, t);
  const share = progress.value[id];
  const status = share === undefined ? dataset.status : "indexing";
  const [failure, setFailure] = useState<Failure | null>(null);
  const start = () => {
    setFailure(null);
    prepare(id).catch((error: unknown) => setFailure(failureOf(error)));
  };
  const unfinished = status !== "ready" && status !== "indexing" && (dataset.documents ?? 0) > 0;
  return (
    <section class="rounded-2xl border border-line bg-surface">
      <div class="flex items-center gap-2 py-3 pr-3 pl-5">
        <a class="min-w-0 flex-1 rounded-lg" href={documentsLink(open ? "" : id)} aria-expanded={open}>
          <h2 class="truncate font-medium">{name}</h2>
          <p class="text-sm text-soft">
            {[t.countDocuments(dataset.documents ?? 0), t.countPassages(dataset.chunks ?? 0), t.status[status]].join(
              " · ",
            )}
          </p>
        </a>
        {unfinished && (
          <button type="button" class="button" onClick={start}>
            {t.prepare}
          </button>
        )}
        <button
          type="button"
          class="icon-button"
          aria-label={`${t.addFiles}: ${name}`}
          title={t.addFiles}
          onClick={() => pickFiles(id)}
        >
          <Icon name="plus" />
        </button>
        <button
          type="button"
          class="icon-button"
          aria-label={t.deleteDataset(name)}
          title={t.delete}
          onClick={() => confirmDelete(t.deleteDatasetAsk, t.deleteDatasetText(name), () => deleteDataset(id))}
        >
          <Icon name="trash" />
        </button>
      </div>
      {status === "indexing" && (
        <div class="px-5 pb-4">
          <progress max={1} value={share ?? 0} aria-label={t.status["indexing"]} />
        </div>
      )}
      {failure && (
        <div class="px-5 pb-4">
          <Problem failure={failure} onRetry={start} />
        </div>
      )}
      {open && <DocumentList datasetId={id} />}
    </section>
  );
}

function DocumentList({ datasetId }: { datasetId: string }) {
  const t = words.value;
  const [failure, setFailure] = useState<Failure | null>(null);
  const load = (more: boolean) => {
    setFailure(null);
    loadDocuments(datasetId, more).catch((error: unknown) => setFailure(failureOf(error)));
  };
  useEffect(() => load(false), [datasetId]);
  const list = documents.value[datasetId];
  const remove = (one: Document) =>
    confirmDelete(t.deleteDocumentAsk, t.deleteDocumentText(one.name), () => deleteDocument(datasetId, one.documentId));
  return (
    <div class="border-t border-line px-2 py-2">
      {failure && <Problem failure={failure} onRetry={() => load(false)} />}
      {!list && !failure && <p class="px-3 py-2 text-sm text-soft">{t.loading}</p>}
      {list?.items.length === 0 && <p class="px-3 py-2 text-sm text-soft">{t.noDocuments}</p>}
      <ul>
        {list?.items.map((one) => (
          <DocumentRow
            key={one.documentId}
            document={one}
            error={indexErrors.value[datasetId]?.find((error) => error.documentId === one.documentId)}
            onDelete={() => remove(one)}
          />
        ))}
      </ul>
      {list?.nextPage && (
        <button type="button" class="min-h-10 px-3 text-sm text-accent hover:underline" onClick={() => load(true)}>
          {t.moreDocuments}
        </button>
      )}
    </div>
  );
}
