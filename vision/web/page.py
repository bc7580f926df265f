"""What the page shows: fields, buttons, and which function each one calls.

Gradio is imported here and in ``server`` only. Its components hand over paths of uploads and
texts; everything that decides something lives in the other modules.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr

from vision.common.core.errors import VisionError
from vision.common.core.picture_files import PICTURE_SUFFIXES
from vision.web import pieces
from vision.web.guard import key_of
from vision.web.limits import Limits, check_clip, first_frame, read_picture
from vision.web.live import LiveView
from vision.web.models import Models
from vision.web.overlays import OverlayOptions, parse_points
from vision.web.video import MODES, ClipOptions, VideoOutcome, run_clip
from vision.web.visitors import Visitor, Visitors

LOG = logging.getLogger('vision.web')
JOBS, LOOKS = 'jobs', 'looks'  # what shares one limit of runs at once
FRAME_EVERY_S = 0.1  # a camera's pictures are sent so often, if the answers keep up
CAMERA = dict(video=dict(width=640, height=480))  # more would be scaled down by the detector


@dataclass
class Desk:
    """What the functions of the page share."""

    models: Models
    visitors: Visitors
    limits: Limits

    def visitor(self, request: gr.Request) -> Visitor:
        """The visitor who sent a request; the guard has seen its cookie before."""
        return self.visitors.of(key_of(request.headers.get('cookie', '')),
                                request.session_hash or '')

    def own_file(self, request: gr.Request, path: str | None, what: str) -> Path:
        """An upload of this visitor. Raises VisionError, VIS-INPUT-1779: there is none."""
        key = key_of(request.headers.get('cookie', ''))
        if not path or not self.visitors.may_read(key, path):
            raise VisionError('VIS-INPUT-1779', f'no {what} was chosen',
                              why='the page works on your own uploads only',
                              do=f'choose a {what} first')
        return Path(path)

    def find_faces(self) -> Callable:
        """What ``Overlays`` takes, from the first face model."""
        name = (self.models.names('faces') or [''])[0]
        model = self.models.get(name, 'faces')
        return lambda image_bgr: model.detect(image_bgr).boxes_xyxy


def build_page(models: Models, visitors: Visitors, limits: Limits) -> gr.Blocks:
    """The whole page; ``server.serve`` starts it."""
    desk = Desk(models, visitors, limits)
    with gr.Blocks(title='Frugal Vision', analytics_enabled=False) as page:
        gr.Markdown('# Frugal Vision\nThe detector runs on few frames, motion carries the boxes '
                    'over the others. Your files stay on this server while this page is open and '
                    'are deleted when it is closed or loaded again.')
        with gr.Tabs():
            with gr.Tab('Video', id='video'):
                video_tab(desk)
            with gr.Tab('Camera', id='camera'):
                camera_tab(desk)
            with gr.Tab('Faces', id='faces'):
                faces_tab(desk)
            with gr.Tab('Classify', id='classify'):
                classify_tab(desk)

        def leave(request: gr.Request) -> None:
            visitors.leave(request.session_hash or '')

        page.unload(leave)
    page.queue(max_size=limits.num_waiting, default_concurrency_limit=limits.num_jobs,
               api_open=False)
    return page


def as_path(component: gr.Image) -> gr.Image:
    """The component hands over the uploaded file as it is: ``read_picture`` looks at its header
    before anything is decoded, where Gradio would decode first."""
    component.preprocess = lambda payload: payload.path if payload is not None else None
    return component


def told(*, num_outputs: int) -> Callable:
    """Decorator: a VisionError becomes the last output, a sentence on the page; the others go
        empty.

    A fault of ours is written to the server's log and nothing of it to the page.
    """
    def decorate(function: Callable) -> Callable:
        def answer(error: VisionError):
            out = (*(None,) * (num_outputs - 1), pieces.error_html(error))
            return out if num_outputs > 1 else out[0]

        def translated(error: Exception) -> VisionError:
            if isinstance(error, VisionError):
                return error
            LOG.exception('%s failed', function.__name__)
            return VisionError('VIS-RUN-1776', 'something went wrong on the server',
                               why='it is written in the log of the server',
                               do='try again, or with another file')

        if inspect.isgeneratorfunction(function):
            @functools.wraps(function)
            def run(*args, **kwargs):
                steps = function(*args, **kwargs)
                try:
                    for step in steps:  # noqa: UP028, yield from would close it by itself
                        yield step
                except GeneratorExit:  # stopped; or the visitor is gone, and with it the folder
                    with suppress(VisionError):
                        steps.close()
                    raise
                except Exception as error:
                    yield answer(translated(error))
        else:
            @functools.wraps(function)
            def run(*args, **kwargs):
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    return answer(translated(error))
        return run
    return decorate


# Video

def video_tab(desk: Desk) -> None:
    """Fields of a clip, and its run into video, files and figures."""
    limits = desk.limits
    with gr.Row():
        with gr.Column(min_width=320):
            clip = gr.Video(label=f'clip: at most {limits.max_mb:g} MB, {limits.max_seconds:g} s',
                            sources=['upload', 'webcam'], elem_id='clip', include_audio=True,
                            height=300)
            fields = detection_fields(desk, 'clip')
            mode = gr.Radio(list(MODES), value=MODES[0], label='mode',
                            info='buffered: a result comes with the next keyframe and is better; '
                            'causal: at once')
            overlays = overlay_fields(desk, 'clip')
            with gr.Accordion('Click a line or a zone', open=False, elem_id='clicks'):
                target = gr.Radio(['line', 'zone'], value='line', label='a click sets the')
                frame = gr.Image(label='first frame', interactive=False, type='filepath',
                                 elem_id='first-frame', buttons=[])
            with gr.Row():
                run = gr.Button('Run', variant='primary', elem_id='run')
                stop = gr.Button('Stop', elem_id='stop')
        with gr.Column(min_width=320):
            status = gr.HTML(elem_id='video-status')
            video = gr.Video(label='result', interactive=False, elem_id='video-result',
                             buttons=['download'], height=400)
            files = gr.File(label='download', file_count='multiple', interactive=False,
                            elem_id='video-files')

    @told(num_outputs=3)
    def work(path, model, fps, score_thr, mode, line, zone, blurred, faces, heat, boxes,
             request: gr.Request, progress=gr.Progress()) -> Iterator:  # noqa: B008, Gradio's form
        visitor = desk.visitor(request)
        source = desk.own_file(request, path, 'clip')
        options = clip_options(fps, score_thr, mode,
                                (line, zone, blurred, faces, heat, boxes))
        progress(0, desc='loading the model')
        finder = desk.find_faces() if options.overlays.with_faces else None
        with desk.models.borrowed(model) as chosen, closing(run_clip(
                chosen, source, visitor.new_folder(), options, limits, find_faces=finder)) as job:
            for step in job:
                if isinstance(step, VideoOutcome):
                    yield str(step.video), [str(path) for path in step.paths], \
                        pieces.outcome_html(step, options)
                else:
                    progress((step.num_done, step.num_frames), desc='frames', unit='frames')
                    yield None, None, pieces.note_html(
                        f'{step.num_done} of {step.num_frames} frames')

    inputs = [clip, *fields, mode, *overlays]
    started = run.click(work, inputs, [video, files, status], concurrency_id=JOBS,
                        concurrency_limit=limits.num_jobs, show_progress_on=[video])
    stop.click(None, cancels=[started])

    @told(num_outputs=2)
    def show_frame(path, request: gr.Request):
        source = desk.own_file(request, path, 'clip')
        check_clip(source, limits)
        place = desk.visitor(request).folder / 'first.jpg'
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), first_frame(source))
        return str(place), ''

    def clear():
        return None, None, None, ''

    # The clip is judged when it comes, not when Run is pressed.
    for event in (clip.upload, clip.stop_recording):
        event(show_frame, [clip], [frame, status], concurrency_id=JOBS, show_progress='hidden')
    clip.clear(clear, None, [frame, video, files, status], concurrency_limit=None)
    line, zone = overlays[:2]
    frame.select(click_point, [target, line, zone], [line, zone], concurrency_limit=None,
                 show_progress='hidden')


def detection_fields(desk: Desk, prefix: str) -> list:
    """Model, frames per second, threshold."""
    names = desk.models.names('video')
    return [gr.Dropdown(names, value=(names or [None])[0], label='model',
                        elem_id=f'{prefix}-model'),
            gr.Number(0, label='budget: frames per second', minimum=0, elem_id=f'{prefix}-fps',
                      info='as many keyframes as this speed of the lattice itself allows; 0: no '
                      'budget, a keyframe on one frame in eight'),
            gr.Slider(0, 1, value=0.3, step=0.05, label='threshold',
                      info='weaker boxes are left out')]


def overlay_fields(desk: Desk, prefix: str) -> list:
    """Line, zone, blurred classes, faces, heat, boxes; ids of the elements begin with prefix."""
    names = desk.models.names('video')
    classes = list(desk.models.classes(names[0])) if names else []
    with gr.Accordion('Count, blur, heat map', open=False, elem_id=f'{prefix}-overlays'):
        line = gr.Textbox(label='line', placeholder='100,200 500,200', elem_id=f'{prefix}-line',
                          info='two points x,y in pixels; who crosses it is counted. Over a line '
                          'drawn downwards, to the right is in')
        zone = gr.Textbox(label='zone', placeholder='100,100 500,100 500,400',
                          elem_id=f'{prefix}-zone', info='three points or more; whose feet are '
                          'inside is counted')
        blurred = gr.Dropdown(classes, multiselect=True, label='blur these classes',
                              elem_id=f'{prefix}-blurred')
        can_find = bool(desk.models.names('faces'))
        faces = gr.Checkbox(False, label='blur faces', elem_id=f'{prefix}-faces',
                            interactive=can_find, info='' if can_find else 'no face model is here')
        heat = gr.Checkbox(False, label='heat map of where they stood', elem_id=f'{prefix}-heat')
        boxes = gr.Checkbox(True, label='boxes, ids and figures', elem_id=f'{prefix}-boxes')
    return [line, zone, blurred, faces, heat, boxes]


def click_point(target: str, line: str | None, zone: str | None,
                event: gr.SelectData) -> tuple[str, str]:
    """The fields with one more point; a third click of a line begins it again."""
    line, zone = line or '', zone or ''
    point = ','.join(str(round(value)) for value in event.index)
    if target == 'zone':
        return line, f'{zone} {point}'.strip()
    return (f'{line} {point}'.strip() if len(line.split()) < 2 else point), zone


def clip_options(fps, score_thr, mode: str, overlays) -> ClipOptions:
    """From the fields of the page, in their order."""
    line, zone, blurred, with_faces, with_heat, with_boxes = overlays
    return ClipOptions(fps or None, mode, score_thr, OverlayOptions(
        parse_points(line, least=2, most=2, what='line'),
        parse_points(zone, least=3, most=50, what='zone'), tuple(blurred or ()),
        bool(with_faces), bool(with_heat), bool(with_boxes)))


# Camera

def camera_tab(desk: Desk) -> None:
    """Fields of a camera whose pictures come back with boxes at once."""
    limits = desk.limits
    with gr.Row():
        with gr.Column(min_width=320):
            camera = gr.Image(sources=['webcam'], streaming=True, type='numpy', label='camera',
                              webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
                              elem_id='camera')
            fields = detection_fields(desk, 'camera')
            overlays = overlay_fields(desk, 'camera')
        with gr.Column(min_width=320):
            shown = gr.HTML(elem_id='camera-result')
            status = gr.HTML(elem_id='camera-status')

    @told(num_outputs=2)
    def look(image, model, fps, score_thr, line, zone, blurred, faces, heat, boxes,
             request: gr.Request):
        if image is None:
            return gr.skip(), gr.skip()
        visitor = desk.visitor(request)
        options = clip_options(fps, score_thr, 'causal',
                                (line, zone, blurred, faces, heat, boxes))
        view = visitor.look((model, options), lambda: LiveView(
            desk.models.borrowed(model), options,
            find_faces=desk.find_faces() if options.overlays.with_faces else None))
        try:
            canvas = view.show(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        except Exception:
            visitor.stop_looking()
            raise
        rows = [('frames', f'{view.num_frames}, {view.fps:.1f} a second'),
                ('keyframes', f'{view.num_keyframes} '
                 f'({view.num_keyframes / view.num_frames:.1%})'),
                *pieces.counts_rows(view.counts())]
        return pieces.picture_html(canvas, 'camera with boxes'), pieces.table_html(rows)

    camera.stream(look, [camera, *fields, *overlays], [shown, status], stream_every=FRAME_EVERY_S,
                  time_limit=limits.max_seconds, concurrency_id=LOOKS,
                  concurrency_limit=limits.num_jobs, show_progress='hidden')


# Faces

def faces_tab(desk: Desk) -> None:
    """Fields to enrol, search and compare faces; without a face model a note."""
    names = desk.models.names('faces')
    gr.Markdown('**Faces are personal data.** Enrol people who agreed. The gallery is kept in the '
                'memory of this server, never in a file, for you alone; closing or loading this '
                'page again deletes it, and so does the button.')
    if not names:
        gr.HTML(pieces.note_html('No face model is here. On the server: vision zoo get '
                                 'mobilefacenet'))
        return
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label='model', elem_id='face-model')
        threshold = gr.Slider(0, 1, value=0.4, step=0.01, label='threshold',
                              info='least cosine of a known face')
    with gr.Row():
        with gr.Column(min_width=320):
            name = gr.Textbox(label='name', elem_id='face-name')
            pictures = gr.File(label='pictures of this person', file_count='multiple',
                               file_types=list(PICTURE_SUFFIXES), elem_id='face-pictures',
                               height=140)
            with gr.Row():
                enrol = gr.Button('Enrol', variant='primary', elem_id='enrol')
                forget = gr.Button('Delete the gallery', elem_id='forget')
            gallery = gr.HTML(elem_id='gallery')
        with gr.Column(min_width=320):
            probe = as_path(gr.Image(label='who is in this picture?', type='filepath',
                                     sources=['upload', 'webcam'], elem_id='probe', height=240))
            search = gr.Button('Search', variant='primary', elem_id='search')
            found = gr.HTML(elem_id='search-result')
    with gr.Row():
        first, second = (as_path(gr.Image(label=label, type='filepath', sources=['upload'],
                                          elem_id=f'compare-{label[0]}', height=200))
                         for label in ('a face', 'is it the same as this one?'))
    compare = gr.Button('Compare', elem_id='compare')
    compared = gr.HTML(elem_id='compare-result')

    def listing(visitor: Visitor, faces) -> str:
        counts = visitor.faces.counts(faces)
        return pieces.table_html((who, f'{count} pictures') for who, count in counts.items()) \
            if counts else pieces.note_html('The gallery is empty.')

    @told(num_outputs=1)
    def enrol_person(model, name, paths, request: gr.Request):
        visitor, faces = desk.visitor(request), desk.models.get(model, 'faces')
        problems = []
        for path in paths or [None]:
            try:
                image = read_picture(desk.own_file(request, path, 'picture'), desk.limits)
                visitor.faces.enrol(faces, name, image)
            except VisionError as error:
                problems.append(pieces.error_html(error))
        return listing(visitor, faces) + ''.join(problems)

    @told(num_outputs=1)
    def forget_all(request: gr.Request):
        desk.visitor(request).faces.clear()
        return pieces.note_html('The gallery is empty.')

    @told(num_outputs=1)
    def search_picture(model, path, threshold, request: gr.Request):
        visitor, faces = desk.visitor(request), desk.models.get(model, 'faces')
        image = read_picture(desk.own_file(request, path, 'picture'), desk.limits)
        people = visitor.faces.of(faces)
        if not len(people):
            return pieces.note_html('Nobody is enrolled yet: write a name, choose pictures, press '
                                    'Enrol.')
        matches = people.search(image, threshold=threshold)
        return pieces.matches_html(image, matches, threshold) if matches else \
            pieces.note_html('No face was found in this picture.')

    @told(num_outputs=1)
    def compare_two(model, path_a, path_b, threshold, request: gr.Request):
        faces = desk.models.get(model, 'faces')
        images = [read_picture(desk.own_file(request, path, 'picture'), desk.limits)
                  for path in (path_a, path_b)]
        result = faces.compare(*images)
        verdict = 'the same person' if result.cosine >= threshold else 'two people'
        return pieces.table_html([('verdict', verdict), ('cosine', f'{result.cosine:.3f}'),
                                  ('threshold', f'{threshold:.2f}')])

    job = dict(concurrency_id=JOBS)
    enrol.click(enrol_person, [model, name, pictures], gallery, **job)
    forget.click(forget_all, None, gallery, **job)
    search.click(search_picture, [model, probe, threshold], found, **job)
    compare.click(compare_two, [model, first, second, threshold], compared, **job)


# Classify

def classify_tab(desk: Desk) -> None:
    """Fields of a picture and a classifier; without a classifier a note."""
    names = desk.models.names('classify')
    if not names:
        gr.HTML(pieces.note_html('No classifier is here. On the server: vision zoo list'))
        return
    with gr.Row():
        with gr.Column(min_width=320):
            picture = as_path(gr.Image(label='picture', type='filepath', elem_id='picture',
                                       sources=['upload', 'webcam', 'clipboard'], height=300))
            model = gr.Dropdown(names, value=names[0], label='model')
            run = gr.Button('Classify', variant='primary', elem_id='classify')
        with gr.Column(min_width=320):
            shown = gr.HTML(elem_id='classify-result')

    @told(num_outputs=1)
    def classify(model, path, request: gr.Request):
        desk.visitor(request)
        image = read_picture(desk.own_file(request, path, 'picture'), desk.limits)
        return pieces.predictions_html(desk.models.get(model, 'classify')(image).top(5))

    run.click(classify, [model, picture], shown, concurrency_id=JOBS)


def theme() -> Any:
    """Without fonts from elsewhere: the page works without a network."""
    return gr.themes.Default(font=['system-ui', 'sans-serif'],
                             font_mono=['ui-monospace', 'monospace'])
