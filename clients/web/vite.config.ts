import tailwindcss from "@tailwindcss/vite";
import { defineConfig } from "vite";

// WEFT_URL: the mesh that `npm run dev` talks to.
const mesh = process.env["WEFT_URL"] ?? "http://127.0.0.1:8080";

export default defineConfig({
  plugins: [tailwindcss()],
  build: {
    outDir: "../../servers/weftd/edge/page",
    emptyOutDir: true,
    // Nothing as a data: URL, so that the page's content security policy can stay strict.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": mesh, "/weft.v1.": mesh } },
});
