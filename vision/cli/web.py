"""A page for video, faces and classification in the browser, for this machine.

  vision web
  vision web --port 8000 --max-mb 50 --max-seconds 30
  vision web --model lattice_yolox-nano          (offers this one only; several may be named)
  vision web --host 0.0.0.0                      (others can reach it: read the page's README)

Upload a clip or use the camera, choose a budget in frames per second, count at a line and in a
zone, blur classes or faces, see a heat map, download the results. Uploads and results are deleted
when the visitor's page is closed; the faces' gallery is in memory only. Needs the extra web.
"""

from __future__ import annotations

from vision.common.core.errors import command_parser, run_cli


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--host', default='127.0.0.1', help='address to listen at (default: %(default)s, this '
        'machine alone)')
    add('--port', type=int, default=7860, help='(default: %(default)s)')
    add('--max-mb', type=float, default=200, help='of an upload (default: %(default)s)')
    add('--max-seconds', type=float, default=120, help='of a clip, and of one look through the '
        'camera (default: %(default)s)')
    add('--model', nargs='+', default=[], metavar='NAME', help='names, configs or .onnx files to '
        'offer (default: what is here of the zoo)')
    add('--share', action='store_true', help='a public address for 72 hours, through a server of '
        'Gradio')
    args = parser.parse_args(argv)
    from vision.web.limits import Limits
    from vision.web.server import serve
    serve(args.model, Limits(max_mb=args.max_mb, max_seconds=args.max_seconds), host=args.host,
          port=args.port, share=args.share)
    return 0


if __name__ == '__main__':
    run_cli(main)
