// Conversations, documents and settings: beside the page, on a phone a drawer over it.
import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import type { Conversation } from "../gen/weft/v1/chat_pb";
import { deleteConversation } from "../state/chat";
import {
  conversations,
  conversationsFailure,
  loadMoreConversations,
  moreConversations,
  refreshConversations,
} from "../state/conversations";
import { chatLink, documentsLink, route } from "../state/route";
import { theme, toggleLanguage, toggleTheme, words } from "../state/settings";
import { confirmDelete, Problem } from "./dialog";
import { Icon, Mark } from "./icons";

/** The drawer is open; on a wide screen the sidebar is always there. */
export const drawer = signal(false);
const wide = matchMedia("(min-width: 48rem)");
const isWide = signal(wide.matches);
wide.addEventListener("change", () => (isWide.value = wide.matches));

/** The page behind an open drawer takes no focus. */
export const covered = (): boolean => drawer.value && !isWide.value;

export function Sidebar() {
  const t = words.value;
  const shown = isWide.value || drawer.value;
  const close = () => (drawer.value = false);
  const closer = useRef<HTMLButtonElement>(null);
  const over = covered();
  useEffect(() => {
    if (!over) return;
    const opener = document.activeElement;
    closer.current?.focus();
    const onKey = (event: KeyboardEvent) =>
      event.key === "Escape" && !document.querySelector("dialog[open]") && close();
    addEventListener("keydown", onKey);
    return () => {
      removeEventListener("keydown", onKey);
      // Only now may the page behind take the focus again.
      if (opener instanceof HTMLElement) setTimeout(() => opener.focus());
    };
  }, [over]);
  return (
    <>
      {over && <div class="fixed inset-0 z-20 bg-veil" onClick={close} />}
      <aside
        class={`fixed inset-y-0 left-0 z-30 flex w-72 max-w-[85vw] flex-col border-r border-line bg-side transition-transform md:static md:translate-x-0 ${shown ? "" : "-translate-x-full"}`}
        inert={!shown}
      >
        <div class="flex items-center gap-3 px-5 pt-5 pb-4">
          <Mark />
          <span class="min-w-0 flex-1">
            <span class="block leading-tight font-semibold tracking-tight">Weft</span>
            <span class="block truncate text-xs text-soft">{t.tagline}</span>
          </span>
          {!isWide.value && (
            <button type="button" ref={closer} class="icon-button" aria-label={t.close} onClick={close}>
              <Icon name="close" />
            </button>
          )}
        </div>
        <nav class="flex min-h-0 flex-1 flex-col px-3" aria-label={t.chats}>
          <a class="button w-full justify-start" href={chatLink("")} onClick={close}>
            <Icon name="plus" />
            {t.newChat}
          </a>
          <a
            class={`mt-1 flex min-h-10 items-center gap-2 rounded-xl px-4 text-sm hover:bg-hover ${route.value.view === "documents" ? "bg-hover font-medium" : ""}`}
            href={documentsLink()}
            aria-current={route.value.view === "documents" ? "page" : undefined}
            onClick={close}
          >
            <Icon name="files" />
            {t.documents}
          </a>
          <h2 class="mt-6 px-4 pb-2 text-xs font-semibold tracking-wide text-soft">{t.chats}</h2>
          <ConversationList onPick={close} />
        </nav>
        <footer class="flex items-center justify-between border-t border-line px-4 py-3">
          <button
            type="button"
            class="icon-button w-auto px-3 text-sm"
            aria-label={t.otherLanguageLabel}
            onClick={toggleLanguage}
          >
            {t.otherLanguage}
          </button>
          <button
            type="button"
            class="icon-button"
            aria-label={theme.value === "dark" ? t.toLight : t.toDark}
            title={theme.value === "dark" ? t.toLight : t.toDark}
            onClick={toggleTheme}
          >
            <Icon name={theme.value === "dark" ? "sun" : "moon"} />
          </button>
        </footer>
      </aside>
    </>
  );
}

function ConversationList({ onPick }: { onPick: () => void }) {
  const t = words.value;
  const list = conversations.value;
  if (conversationsFailure.value && !list) {
    return <Problem failure={{ reason: "", message: t.chatsFailed }} onRetry={() => void refreshConversations()} />;
  }
  if (!list) return <p class="px-4 text-sm text-soft">{t.loading}</p>;
  if (list.length === 0) return <p class="px-4 text-sm text-soft">{t.noChats}</p>;
  return (
    <ul class="-mr-2 min-h-0 flex-1 space-y-0.5 overflow-y-auto pr-2 pb-4">
      {list.map((one) => (
        <ConversationRow key={one.conversationId} one={one} onPick={onPick} />
      ))}
      {moreConversations.value && (
        <li>
          <button
            type="button"
            class="min-h-10 px-4 text-sm text-accent hover:underline"
            onClick={() => void loadMoreConversations()}
          >
            {t.moreChats}
          </button>
        </li>
      )}
    </ul>
  );
}

function ConversationRow({ one, onPick }: { one: Conversation; onPick: () => void }) {
  const t = words.value;
  const title = one.title || t.untitled;
  const here = route.value.view === "chat" && route.value.id === one.conversationId;
  return (
    <li class={`group flex items-center rounded-xl hover:bg-hover ${here ? "bg-hover" : ""}`}>
      <a
        class={`min-w-0 flex-1 truncate rounded-xl py-2 pl-4 text-sm ${here ? "font-medium" : ""}`}
        href={chatLink(one.conversationId)}
        aria-current={here ? "page" : undefined}
        title={title}
        dir="auto"
        onClick={onPick}
      >
        {title}
      </a>
      <button
        type="button"
        class="icon-button hover:bg-transparent opacity-0 group-hover:opacity-100 focus-visible:opacity-100 pointer-coarse:opacity-100"
        aria-label={t.deleteChat(title)}
        onClick={() =>
          confirmDelete(t.deleteChatAsk, t.deleteChatText(title), () => deleteConversation(one.conversationId))
        }
      >
        <Icon name="trash" class="size-4" />
      </button>
    </li>
  );
}
