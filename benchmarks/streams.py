"""How many live streams a server recognises at once, and with which delays.

``python -m benchmarks.streams --model demo --placement local`` starts the graph with a
configuration of its own and loads it with real-time clients: 100 ms frames of the demo's held-out
sentences, looped, each stream from another offset. The number of streams is doubled, then bisected,
for the largest with a 95th percentile of lag of at most one second and no stream that failed.
``--url ws://… --dialect …`` measures a server that runs already instead, this one or another.
``--minutes 30`` measures instead how the server's memory grows while ``--streams`` streams run and
as many more begin and end every minute; ``--refusals`` how soon one more stream is rejected while
the one ingress replica has all the ``--most`` streams that it may have.

The clients measure all times from the moment a frame was written to the socket, while all streams
run:

- *lag*: receipt of an answer − sending of the last audio that it covers. An answer of the native
  form (partial or progress) and of the v1 form (finals only: lag includes the wait for the pause)
  states what it covers; of the classic form the n-th covers the n-th frame; of sherpa-onnx the n-th
  covers the n-th chunk of the model (``--window-s`` and ``--shift-s``); of the Vosk 5 form only the
  words show it, so that there lag is the next figure;
- *word*: receipt of the first answer with a word − sending of the frame with the end of that word,
  by the reference: the delay for a user, with the look-ahead and the chunk of the model;
- *first*: receipt of the first text of a sentence − sending of the frame with the start of its
  first word;
- *final*: receipt of the last answer − sending of the end, at any place of a sentence;
- *CPU per stream*: processor time of the server's process tree ÷ wall time ÷ streams, in percent of
  a core; that of the clients is printed beside it, as they run on the same machine;
- *ceiling*: streams that the bare engine decodes in real time, in as many processes as there are
  cores, of the same sentences without a pause, one by one (the cores ÷ its real-time factor) and
  in the best batch.

``--gap-s 3`` makes the audio like one side of a call, which is silent for more than half of it.

The untrained model of ``--model full`` (see ``full_size.py``) recognises random words: *word* and
*first* are left out there.
"""

import argparse
import math
import os
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.benchmark_server import MODELS, catalogue_with, graph_config, running_graph
from benchmarks.decode_ceiling import CORES, ceiling, process_pool
from benchmarks.speech_track import GAP_S, Track
from benchmarks.stream_clients import ClientOptions, prepare
from benchmarks.stream_dialects import DIALECTS
from benchmarks.stream_load import HEADER, Load, largest, probe, refusals, soak
from configs.catalogue import CATALOGUE_PATH, Catalogue


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--placement", choices=("local", "replicas"), default="local")
    parser.add_argument("--dialect", choices=DIALECTS, default="native")
    parser.add_argument("--haproxy", action="store_true", help="in front, as on a cluster")
    parser.add_argument("--ingresses", type=int, default=1, help="ingress replicas")
    parser.add_argument("--recognisers", type=int, default=1, help="live replicas")
    parser.add_argument("--url", help="of a server that runs already, ws://host:port")
    parser.add_argument("--pid", type=int, help="of that server, if it runs here")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured of each probe")
    parser.add_argument("--first", type=int, default=16, help="streams of the first probe")
    parser.add_argument("--most", type=int, default=2000, help="largest number of streams")
    parser.add_argument("--clients", type=int, default=CORES, help="processes of clients")
    parser.add_argument("--minutes", type=float, help="soak instead of searching")
    parser.add_argument("--streams", type=int, default=8, help="of a soak")
    parser.add_argument("--refusals", action="store_true", help="measure instead of searching")
    parser.add_argument("--window-s", type=float, default=0.335, help="audio of a first chunk")
    parser.add_argument("--shift-s", type=float, default=0.16, help="audio of each further chunk")
    parser.add_argument("--gap-s", type=float, default=GAP_S, help="of silence between sentences")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the graph as well
    print(
        f"load of the machine before: {os.getloadavg()[0]:.1f}; "
        f"{Track.of_heldout(arguments.gap_s).spoken_share:.0%} of the audio is spoken"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = catalogue_with(folder) if arguments.model == "full" else CATALOGUE_PATH
        entry = Catalogue.load(models).find(MODELS[arguments.model])
        assert entry is not None
        searches = arguments.minutes is None and not arguments.refusals
        alone, best = ceiling(entry) if searches else (math.nan, math.nan)
        url, root = arguments.url, arguments.pid
        if url is None:
            graph = running_graph(graph_config(arguments, models), folder, arguments.haproxy)
            url, root = stack.enter_context(graph)
        pool = stack.enter_context(
            process_pool(arguments.clients + 1, initializer=prepare, initargs=(arguments.gap_s,))
        )
        options = ClientOptions(
            url,
            arguments.dialect,
            entry.id,
            arguments.window_s,
            arguments.shift_s,
            arguments.gap_s,
        )
        load = Load(options, pool, arguments.clients, root, arguments.seconds)
        probe(load, min(4 * CORES, arguments.most), 3.0)  # loads the models
        if arguments.minutes is not None:
            soak(load, arguments.streams, arguments.minutes)
            return
        if arguments.refusals:
            refusals(load, arguments.most)
            return
        print(HEADER, flush=True)
        streams = largest(load, arguments.first, arguments.most)
        print(
            f"{streams} streams, {streams / alone:.2f} of the ceiling one by one, "
            f"{streams / best:.2f} of that in the best batch"
        )


if __name__ == "__main__":
    main()
