// The page as a whole.
import { useEffect } from "preact/hooks";

import { conversations } from "./state/conversations";
import { datasetName, datasets, DEFAULT_DATASET } from "./state/knowledge";
import { chatLink, route } from "./state/route";
import { words } from "./state/settings";
import { underWay, uploads } from "./state/uploads";
import { announce } from "./ui/announcer";
import { ChatView } from "./ui/chat";
import { ConfirmDialog } from "./ui/dialog";
import { DocumentsView } from "./ui/documents";
import { Icon } from "./ui/icons";
import { dragging, target } from "./ui/pick";
import { covered, drawer, Sidebar } from "./ui/sidebar";
import { SourceSheet } from "./ui/sources";
import { TokenDialog } from "./ui/token";

export function App() {
  const t = words.value;
  const here = route.value;
  const title = here.view === "documents" ? t.documents : titleOf(here.id);
  useEffect(() => {
    document.title = title ? `${title} · Weft` : `Weft · ${t.tagline}`;
  }, [title, t]);
  const waiting = uploads.value.some(underWay);
  useEffect(() => {
    if (!waiting && uploads.value.some((one) => one.state.value.step === "ready")) announce(t.uploadsDone);
  }, [waiting]);
  return (
    <div class="flex h-dvh">
      <a
        href={here.view === "documents" ? "#content" : "#question"}
        class="sr-only z-40 rounded-xl bg-accent px-4 py-2 text-on-accent focus:not-sr-only focus:fixed focus:top-3 focus:left-3"
        onClick={(event) => {
          event.preventDefault(); // the hash says which chat is open
          (document.getElementById("question") ?? document.getElementById("content"))?.focus();
        }}
      >
        {t.skip}
      </a>
      <Sidebar />
      <main id="content" tabIndex={-1} class="flex min-w-0 flex-1 flex-col outline-none" inert={covered()}>
        <header class="flex items-center gap-2 border-b border-line px-2 py-2 md:hidden">
          <button
            type="button"
            class="icon-button size-10"
            aria-label={t.menu}
            aria-expanded={drawer.value}
            onClick={() => (drawer.value = true)}
          >
            <Icon name="menu" />
          </button>
          <p class="min-w-0 flex-1 truncate text-sm font-medium">{title || "Weft"}</p>
          <a class="icon-button size-10" href={chatLink("")} aria-label={t.newChat}>
            <Icon name="plus" />
          </a>
        </header>
        {here.view === "documents" ? (
          <div class="min-h-0 flex-1 overflow-y-auto">
            <DocumentsView id={here.id} />
          </div>
        ) : (
          <ChatView id={here.id} />
        )}
      </main>
      {dragging.value && <DropVeil />}
      <SourceSheet />
      <ConfirmDialog />
      <TokenDialog />
    </div>
  );
}

function titleOf(conversationId: string): string {
  return conversations.value?.find((one) => one.conversationId === conversationId)?.title ?? "";
}

function DropVeil() {
  const t = words.value;
  const datasetId = target() ?? DEFAULT_DATASET;
  const dataset = datasets.value?.find((one) => one.datasetId === datasetId) ?? { datasetId, name: "" };
  return (
    <div class="pointer-events-none fixed inset-0 z-40 flex items-center justify-center bg-veil p-6">
      <div class="rounded-3xl border-2 border-dashed border-accent bg-surface px-10 py-12 text-center">
        <p class="text-xl font-semibold">{t.dropNow}</p>
        <p class="mt-1 text-soft">{t.dropInto(datasetName(dataset, t))}</p>
      </div>
    </div>
  );
}
