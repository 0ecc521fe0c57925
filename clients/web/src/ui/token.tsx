// Asks for an access token where the mesh hands out none.
import { useState } from "preact/hooks";

import { tokenRequest } from "../api/token";
import { words } from "../state/settings";
import { Dialog } from "./dialog";

export function TokenDialog() {
  const t = words.value;
  const [value, setValue] = useState("");
  const asked = tokenRequest.value;
  if (!asked) return null;
  return (
    <Dialog title={t.tokenTitle}>
      <form
        class="mt-2"
        onSubmit={(event) => {
          event.preventDefault();
          asked.give(value.trim());
          setValue("");
        }}
      >
        <p class="text-sm text-soft">{t.tokenText}</p>
        <label class="mt-4 block text-sm font-medium">
          {t.tokenLabel}
          <input
            class="field mt-1 font-mono font-normal"
            type="password"
            autocomplete="off"
            autofocus
            required
            value={value}
            aria-invalid={asked.refused}
            aria-describedby={asked.refused ? "token-wrong" : undefined}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        {asked.refused && (
          <p id="token-wrong" role="alert" class="mt-2 text-sm text-danger">
            {t.tokenWrong}
          </p>
        )}
        <div class="mt-6 flex justify-end">
          <button type="submit" class="button button-main" disabled={value.trim() === ""}>
            {t.signIn}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
