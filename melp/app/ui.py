"""The page and the interface for clients, in Gradio: what is asked goes to the engine, what it answers to the page."""

import time
from importlib import resources

import gradio as gr

from melp.app import pages
from melp.app.batch import SHOW_EVERY, run_batch
from melp.app.engine import Engine
from melp.app.examples import EXAMPLES, PATIENT
from melp.app.kept import MOST_HITS, MOST_OF_ONE, Kept, Recording
from melp.app.limits import Refusal, explained
from melp.app.uploads import Uploads
from melp.notice import NOTICE
from melp.predict.reading import Reading

# Messages of a batch that may wait to be fetched, one per second: Gradio notes when a connection ends, not that there
# never was one, and would continue for nobody.
UNHEARD = 30
CLICKS = """
element.addEventListener("click", (event) => {
  const evidence = event.target.closest("[data-evidence]"), open = event.target.closest("[data-open]");
  if (evidence) trigger("evidence", { text: evidence.dataset.evidence });
  if (open) trigger("open", { number: Number(open.dataset.open) });
});
"""


def static(name: str) -> str:
    return resources.files("melp.app").joinpath("static", name).read_text(encoding="utf-8")


def reading_of(rate, unit, leads) -> Reading:
    """Returns how files are read that do not state everything.

    Raises:
        Refusal: for a rate that is no number, an unknown unit or lead.
    """
    try:
        hertz = float(rate) if rate else None
    except (TypeError, ValueError):
        raise Refusal("the sampling rate must be a number of Hz.") from None
    try:
        names = tuple(str(leads or "").replace(",", " ").split())
        return Reading(sampling_rate=hertz, unit=str(unit) if unit else None, leads=names or None)
    except ValueError as error:
        raise Refusal(str(error).replace("--", "")) from None  # which is for a command line


class App:
    """The functions behind the page and the interface for clients."""

    def __init__(self, engine: Engine, uploads: Uploads):
        self.engine, self.uploads = engine, uploads
        self.kept: Kept[Recording] = Kept(engine.limits.keep_minutes)
        self.last_hits: Kept[dict] = Kept(engine.limits.keep_minutes, MOST_HITS)

    def expire(self):
        """Forgets what nobody asked about for its time."""
        self.kept.expire()
        self.last_hits.expire()

    # ------------------------------------------------------------------------------------------------------- reading

    def recordings(self, files, reading: Reading | None, most: int):
        """Reads uploaded files, which are gone afterwards; returns up to `most`, and (name, reason) of the unreadable.

        Raises:
            Refusal: where none can be read, with the reason.
        """
        read, rejected = [], []
        with self.uploads.take(files) as folder:
            for one in self.engine.read(folder, reading or Reading()):
                (read if isinstance(one, Recording) else rejected).append(one)
                if len(read) >= most:
                    break
        if not read:
            raise Refusal(" ".join(f"{name}: {reason}." for name, reason in rejected[:3]))
        return read, rejected

    def one(self, files, reading: Reading | None = None) -> Recording:
        recordings, _ = self.recordings(files, reading, most=2)
        if len(recordings) > 1:
            raise Refusal("these are several recordings: this takes one, batch takes any number.")
        return recordings[0]

    def meant(self, files, request: gr.Request) -> Recording:
        """Returns the recording of uploaded files or, without any, the one that this client read last."""
        return self.one(files) if files or not request.session_hash else self.current(request.session_hash, 0)

    def current(self, session: str, number) -> Recording:
        kept = self.kept.get(session)
        if not kept:
            raise Refusal("this recording is no longer kept: choose the file again.")
        return kept[min(int(number or 0), len(kept) - 1)]

    # -------------------------------------------------------------------------------------------- for clients, as JSON

    # A gr.Request is Gradio's to give; without files a client asks about the recording that it read last.

    def api_read(
        self,
        files: list,
        request: gr.Request,
        sampling_rate: float = 0,
        unit: str = "",
        leads: str = "",
        identifiers: bool = False,
    ) -> dict:
        """Reads one recording: findings as in the zero-shot pipeline, and quality. WFDB: header and data together."""
        recording = self.one(files, reading_of(sampling_rate, unit, leads))
        if request.session_hash:
            self.kept.put(request.session_hash, [recording])
        return self.engine.answer(recording, identifiers)

    def api_ask(self, files: list, words: str, request: gr.Request) -> list:
        """Says how well findings in words (commas between them) describe a recording, best first."""
        return self.engine.ask(self.meant(files, request), words)

    def api_report(self, files: list, request: gr.Request) -> dict:
        """Drafts a report, as the ecg-to-text pipeline does."""
        return self.engine.draft(self.meant(files, request))

    def api_embed(self, files: list, request: gr.Request) -> list:
        """Returns the L2-normalised embedding, as the feature-extraction pipeline does."""
        return [float(x) for x in self.meant(files, request).row["embedding"]]

    def api_evidence(self, files: list, text: str, request: gr.Request) -> dict:
        """Says where a recording bears out a finding or a sentence, and whether that is faithful."""
        return self.engine.evidence(self.meant(files, request), text)

    def api_compare(self, first: list, second: list) -> dict:
        """Says by how much findings changed between two recordings."""
        return self.engine.compare(self.one(first), self.one(second))

    def api_search(self, words: str = "", files: list | None = None, count: int = 10) -> list:
        """Finds the nearest recordings of the index to words or to a recording, each patient once."""
        query = self.one(files) if files else words
        return [without_places(hit) for hit in self.engine.search(query, count)]

    def api_batch(self, files: list) -> dict:  # type: ignore[misc]  # Gradio takes the type of what is yielded
        """Reads any number of recordings, files or zip files: an answer each, and why others were rejected.

        Before the answer comes, a second apart, how many are `done`: it ends there when the client has left.
        """
        rows, rejected, shown = [], [], time.monotonic()
        with self.uploads.take(files) as folder:
            for one in self.engine.read(folder, Reading()):
                if isinstance(one, Recording):
                    rows.append(self.engine.answer(one))
                else:
                    rejected.append({"record": one[0], "reason": one[1]})
                if time.monotonic() - shown >= SHOW_EVERY:
                    shown = time.monotonic()
                    yield {"notice": NOTICE, "done": len(rows) + len(rejected)}
        yield {"notice": NOTICE, "recordings": rows, "rejected": rejected}

    # ------------------------------------------------------------------------------------------------- Read, as a page

    def show(self, session: str, number, identifiers: bool = False):
        recording = self.current(session, number)
        answer = self.engine.answer(recording, identifiers)
        return (
            pages.title(recording, identifiers)
            + pages.paper([pages.trace_of(recording.block, recording.name)], f"ECG {recording.name}"),
            pages.quality(answer["quality"]),
            pages.findings(answer),
            *("", "", ""),  # words, evidence, report
        )

    def put(self, session: str, recordings: list[Recording], said: str = "", identifiers: bool = False):
        """Keeps recordings and shows the first."""
        self.kept.put(session, recordings)
        choices = [(recording.name, number) for number, recording in enumerate(recordings)]
        choice = gr.update(choices=choices, value=0, visible=len(recordings) > 1)
        return (None, said, choice, *self.show(session, 0, identifiers), gr.update(visible=True))

    def failed(self, error: Exception):
        return (None, pages.problem(explained(error)), *[gr.skip()] * 8)

    def page_read(self, files, rate, unit, leads, identifiers, request: gr.Request):
        try:
            recordings, rejected = self.recordings(files, reading_of(rate, unit, leads), MOST_OF_ONE + 1)
            said = "".join(pages.problem(f"{name}: {reason}") for name, reason in rejected[:5])
            if len(recordings) > MOST_OF_ONE:
                said += f'<p class="hint">These are the first {MOST_OF_ONE} recordings; Batch takes any number.</p>'
            return self.put(request.session_hash, recordings[:MOST_OF_ONE], said, identifiers)
        except Exception as error:
            return self.failed(error)

    def page_example(self, name: str):
        """Returns what shows an example."""

        def show(request: gr.Request):
            try:
                return self.put(request.session_hash, [self.engine.simulated(EXAMPLES[name])])
            except Exception as error:
                return self.failed(error)

        return show

    def page_choose(self, number, identifiers, request: gr.Request):
        return self.guarded(lambda: self.show(request.session_hash, number, identifiers), 6, 4)

    def page_draft(self, number, request: gr.Request):
        if not self.kept.get(request.session_hash):
            return ""
        return self.guarded(lambda: pages.report(self.engine.draft(self.current(request.session_hash, number))), 1, 0)

    def page_ask(self, words, number, request: gr.Request):
        def ask():
            recording = self.current(request.session_hash, number)
            answer = {"findings": self.engine.ask(recording, words)}
            return pages.findings(answer, "In your words")

        return self.guarded(ask, 1, 0)

    def page_evidence(self, number, request: gr.Request, event: gr.EventData):
        def look():
            return pages.evidence(
                self.engine.evidence(self.current(request.session_hash, number), event._data["text"])
            )

        return self.guarded(look, 1, 0)

    @staticmethod
    def guarded(function, outputs: int, place: int):
        """Returns what `function` returns, or its error at one place of the outputs."""
        try:
            return function()
        except Exception as error:
            problem = pages.problem(explained(error))
            return problem if outputs == 1 else tuple(
                problem if number == place else gr.skip() for number in range(outputs)
            )  # fmt: skip

    # ------------------------------------------------------------------------------------ Compare, Search and Batch

    def page_compare(self, first, second, request: gr.Request):
        def compare():
            if not first or not second:
                raise Refusal("choose two recordings.")
            return self._compared(self.one(first), self.one(second))

        return (None, None, *self._pair(compare))

    def page_compare_example(self, request: gr.Request):
        return (None, None, *self._pair(lambda: self._compared(*map(self.engine.simulated, PATIENT))))

    def _pair(self, function):
        try:
            return function()
        except Exception as error:
            return pages.problem(explained(error)), ""

    def _compared(self, first: Recording, second: Recording):
        compared = self.engine.compare(first, second)
        traces = [pages.trace_of(first.block, f"First: {first.name}")]
        shift = compared["shift_s"]
        traces.append(pages.trace_of(second.block, f"Second: {second.name}", shift or 0.0))
        paper = pages.paper(traces, "Two ECGs, aligned by beat", ("6x2", "3x4", "12x1"), "compared", apart=True)
        said = "No beats were detected in one of the two: they are not aligned."
        if shift is not None:
            said = f"The second is moved by {shift:+.2f} s, so that the first beats lie above each other."
        return f'{paper}<p class="hint">{said}</p>', pages.changes(compared)

    def page_search(self, words, request: gr.Request):
        return self.guarded(lambda: self._hits(request.session_hash, words), 1, 0)

    def page_search_like(self, number, request: gr.Request):
        return self.guarded(lambda: self._hits(request.session_hash, self.current(request.session_hash, number)), 1, 0)

    def _hits(self, session: str, query) -> str:
        hits = self.engine.search(query)
        self.last_hits.put(session, hits)
        shown = []
        with self.engine.reader.process() as process:
            for hit in hits:
                item = process.read(hit["path"], self.engine.index.reading_of(hit))
                shown.append((hit, item.blocks[0] if item.blocks else None))
        return pages.hits(shown)

    def page_open(self, request: gr.Request, event: gr.EventData):
        try:
            hits = self.last_hits.get(request.session_hash)
            if not hits:
                raise Refusal("these hits are no longer kept: search again.")
            hit = hits[int(event._data["number"])]
            return (*self.put(request.session_hash, [self.engine.open_hit(hit)]), gr.Tabs(selected="read"))
        except Exception as error:
            return (*self.failed(error), gr.skip())

    def page_batch(self, files, folder, pdf, request: gr.Request):
        yield (None, None, '<p role="status">Reading ...</p>', gr.update(visible=False), *[gr.skip()] * 2)
        try:
            payload = [*(files or []), *(folder or [])]
            with self.uploads.take(payload) as place:
                for done, total, table, downloads in run_batch(self.engine, self.uploads, place, pdf):
                    if downloads is None:
                        bar = f'<progress max="{total}" value="{done}"></progress>'
                        yield (
                            *[gr.skip()] * 2,
                            f'<p role="status">{done:,} of {total:,} {bar}</p>{table}',
                            *[gr.skip()] * 3,
                        )
                    else:
                        files = [gr.update(value=path and str(path), visible=bool(path)) for path in downloads]
                        yield (*[gr.skip()] * 2, table, *files)
        except Exception as error:
            yield (*[gr.skip()] * 2, pages.problem(explained(error)), *[gr.skip()] * 3)

    def page_left(self, request: gr.Request):
        """Forgets a visitor who closed the page."""
        self.kept.forget(request.session_hash)
        self.last_hits.forget(request.session_hash)


def without_places(hit: dict) -> dict:
    """Returns a hit without where its file and its model lie on the server, and who the patient is."""
    return {name: value for name, value in hit.items() if name not in ("path", "model", "patient")}


# ----------------------------------------------------------------------------------------------------------- the page


class Page(gr.Blocks):
    """Gradio's page, which prints no error: with a traceback goes what the request held, a file's name for one."""

    async def process_api(self, block_fn, inputs, *arguments, **options):
        try:
            said = self._queue.pending_messages_per_session.get(options.get("session_hash"))
            if options.get("iterator") is not None and said is not None and said.qsize() > UNHEARD:
                raise Refusal("nobody fetched what this batch said: it has ended.")
            if options.get("iterator") is None and len(inputs) < len(block_fn.inputs):
                raise Refusal(
                    f"/{block_fn.api_name} takes {len(block_fn.inputs)} values, not {len(inputs)}: ?view=api."
                )
            return await super().process_api(block_fn, inputs, *arguments, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            raise gr.Error(explained(error), print_exception=False) from None


def build(app: App) -> gr.Blocks:
    """Returns the page; `launch` shows it."""
    quick = {"concurrency_id": "quick", "concurrency_limit": 2}
    private = {"api_visibility": "private", "preprocess": False, "show_progress": "minimal"}
    with Page(title="MELP", analytics_enabled=False) as page:
        gr.HTML(f'<p id="notice" role="note">{NOTICE}</p>')
        gr.HTML('<h1 style="font-size:24px;margin:0">MELP reads ECGs</h1>', elem_classes="melp")
        with gr.Tabs(selected="read") as tabs:
            with gr.Tab("Read", id="read"):
                outputs = _read_tab(app, private, quick)
            with gr.Tab("Compare", id="compare"):
                _compare_tab(app, private, quick)
            with gr.Tab("Search", id="search"):
                _search_tab(app, private, quick, outputs, tabs)
            with gr.Tab("Batch", id="batch"):
                _batch_tab(app, private)
        page.unload(app.page_left)
        for name in ("read", "ask", "report", "embed", "evidence", "compare", "search", "batch"):
            function = getattr(app, f"api_{name}")
            limits = {"concurrency_id": "batch", "concurrency_limit": 1} if name == "batch" else quick
            gr.api(function, api_name=name, api_description=function.__doc__, **limits)
    return page


def _html(**options) -> gr.HTML:
    return gr.HTML(elem_classes="melp", js_on_load=CLICKS, apply_default_css=False, **options)


def _read_tab(app: App, private: dict, quick: dict) -> list:
    file = gr.File(file_count="multiple", label="ECG files in any format (WFDB: header and data together)", height=180)
    gr.HTML('<p class="hint">Or a simulated example:</p>', elem_classes="melp")
    with gr.Row(elem_id="examples"):
        examples = [(name, gr.Button(f"{name} (simulated)", size="sm", min_width=140)) for name in EXAMPLES]
    with gr.Accordion("What a file does not state, and what it says of the patient", open=False):
        with gr.Row():
            rate = gr.Textbox(label="Sampling rate (Hz)", placeholder="of tables and arrays")
            unit = gr.Textbox(label="Unit", placeholder="mV, uV, 2.5 uV")
            leads = gr.Textbox(label="Leads", placeholder="I II III aVR aVL aVF V1 ...")
        identifiers = gr.Checkbox(label="Show the fields of a file that identify the patient", value=False)
    status = _html()
    choice = gr.Dropdown(label="Recording", visible=False, interactive=True)
    paper, evidence = _html(), _html()
    with gr.Row():
        quality, findings = _html(min_width=320), _html(min_width=320)
    with gr.Group(visible=False) as asking, gr.Row(equal_height=True):
        words = gr.Textbox(
            label="Any finding in words", placeholder="right ventricular strain", scale=4, max_length=300
        )
        ask = gr.Button("Ask", variant="primary", min_width=120, scale=0)
    answer, report = _html(), _html()
    outputs = [file, status, choice, paper, quality, findings, answer, evidence, report, asking]
    draft = {"fn": app.page_draft, "inputs": [choice], "outputs": [report], **private, **quick}
    file.upload(app.page_read, [file, rate, unit, leads, identifiers], outputs, **private, **quick).then(**draft)
    for name, button in examples:
        button.click(app.page_example(name), None, outputs, **private, **quick).then(**draft)
    shown = [paper, quality, findings, answer, evidence, report]
    for event in (choice.input, identifiers.input):
        event(app.page_choose, [choice, identifiers], shown, **private, **quick).then(**draft)
    for event in (ask.click, words.submit):
        event(app.page_ask, [words, choice], [answer], **private, **quick)
    looking = {"concurrency_id": "evidence", "concurrency_limit": 1}
    for part in (findings, answer, report):
        part.evidence(app.page_evidence, [choice], [evidence], **private, **looking)
    app.choice = choice
    return outputs


def _compare_tab(app: App, private: dict, quick: dict):
    with gr.Row():
        first = gr.File(file_count="multiple", label="First recording", height=180)
        second = gr.File(file_count="multiple", label="Second recording of the patient", height=180)
    with gr.Row():
        compare = gr.Button("Compare", variant="primary")
        example = gr.Button("A simulated patient, twice")
    outputs = [first, second, _html(), _html()]
    compare.click(app.page_compare, [first, second], outputs, **private, **quick)
    example.click(app.page_compare_example, None, outputs, **private, **quick)


def _search_tab(app: App, private: dict, quick: dict, outputs: list, tabs: gr.Tabs):
    index = app.engine.index
    known = f"{index.size:,} recordings can be searched." if index else "No archive: start the app with --index INDEX."
    gr.HTML(f'<p class="hint">{known}</p>', elem_classes="melp")
    with gr.Row(equal_height=True):
        words = gr.Textbox(label="Search in words", placeholder="inferior st elevation", scale=4, max_length=300)
        search = gr.Button("Search", variant="primary", min_width=100, interactive=index is not None)
        like = gr.Button("Like the one in Read", min_width=160, interactive=index is not None)
    hits = _html()
    for event in (search.click, words.submit):
        event(app.page_search, [words], [hits], **private, **quick)
    like.click(app.page_search_like, [app.choice], [hits], **private, **quick)
    hits.open(app.page_open, None, [*outputs, tabs], **private, **quick)


def _batch_tab(app: App, private: dict):
    with gr.Row():
        files = gr.File(file_count="multiple", label="Files, or a zip file", height=180)
        folder = gr.File(file_count="directory", label="A folder", height=180)
    pdf = gr.Checkbox(label="With a PDF report per recording", value=False)
    start = gr.Button("Start", variant="primary")
    table = _html()
    with gr.Row():
        downloads = [
            gr.DownloadButton(f"Download {kind}", visible=False) for kind in ("CSV", "Parquet", "PDF reports")
        ]
    start.click(
        app.page_batch, [files, folder, pdf], [files, folder, table, *downloads], **private,
        concurrency_id="batch", concurrency_limit=1,
    )  # fmt: skip


def theme() -> gr.themes.Base:
    """Returns a theme with fonts that every computer has: none is fetched."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], text_size="lg", primary_hue="blue"
    )


def head() -> str:
    return f'<meta name="referrer" content="no-referrer"><script>{static("viewer.js")}</script>'
