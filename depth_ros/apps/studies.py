"""The studies of the Global-Local paper on our pairs: which networks each one trains, and what its table says."""

from __future__ import annotations

from collections.abc import Callable

from depth_ros.apps.bench import Bench, Predict, Trained, with_flow_error
from depth_ros.apps.learning_curves import LONGER, Courses, histories
from depth_ros.apps.study_report import Table
from depth_ros.learning.classical import SfmFlow, Triangulation

RIVALS = {'eigen': 'Eigen et al.', 'dispnet': 'DispNet', 'fcrn': 'FCRN', 'small_enc_dec': 'Small Enc-Dec'}
OTHERS = {'unsupervised': 'unsupervised (known K)', 'pose_aware': 'pose-aware (ours), true pose'}
OURS = 'Global-Local'
ABLATIONS = {'no image pair': 'image_pair', 'no coordinates': 'coordinates', 'no global module': 'global_module', 'no flow': 'flow'}
DENSITIES = {**{count: str(count) for count in (1, 2, 5, 10, 50, 100, 1000)}, 0: 'dense'}       # supervised pixels per image: title
ENDS = (1, 0)           # all that DispNet, ten times as dear, is trained at: what is asked is how much it loses from one end to the other
FLOW_SHARES = (0.0, 0.5, 1.0, 1.5, 2.0)
FLOW_SHARE = 0.25       # of PWC-Net's width, in the study of flow fine-tuning
SPREAD = 0.2            # of focal lengths and principal points, in the study of varying intrinsics
_HOW = {'unsupervised': {'model': 'unsupervised', 'objective': 'photometric', 'smooth_weight': 0.01, 'l1_weight': 1.0}, 'pose_aware': {'model_config': {'pose_aware': True}}}
_HEAD_WIDTH = 256       # of the pose head, as in the paper's main part


def _predict(trained: Trained) -> Predict:
    return lambda pairs: trained.network(*trained.network.inputs(pairs))


def _with_dispnet(bench: Bench) -> dict[str, str]:
    """The two networks that some studies are about, or ours alone if the other does not take part."""
    return {'global_local': OURS} | bench.chosen({'dispnet': RIVALS['dispnet']})


def _ours(bench: Bench, *keys: str) -> dict[str, object]:
    """What the comparison's recipe says of Global-Local, of those keys."""
    return {key: bench.common.model_config[key] for key in keys if key in bench.common.model_config}


def _pose_head(bench: Bench, seed: int, full: bool, pretrained: bool) -> Trained:
    """One of the four variants of the head that reads the motion from the global parameters."""
    start = {'start_from': bench.checkpoint('global_local', seed)} if pretrained else {}
    name = f'pose_{"pretrained" if pretrained else "scratch"}_{"full" if full else "head"}'
    if pretrained:
        bench.train('global_local', seed)
    config = {'full': full, 'width': _HEAD_WIDTH} | _ours(bench, 'image_pair', 'global_width')
    return bench.train(name, seed, model='pose_head', model_config=config, objective='motion', best_by='rotation', **start)


def main_comparison(bench: Bench) -> Table:
    """Every network and every way without one."""
    table = Table('main', 'Main comparison', f'One supervised pixel per image, {bench.common.steps} steps of {bench.common.batch} pairs for every network.')
    table.rows[OURS] = [bench.score(bench.train('global_local', seed)) for seed in bench.seeds]
    for model, title in bench.chosen(RIVALS).items():
        table.rows[title] = [bench.score(bench.train(model, seed, model=model)) for seed in bench.seeds]
    table.rows['dataset mean'] = [bench.score_prediction('dataset_mean', bench.dataset_mean)]
    table.rows['SfM-Flow'] = [bench.score_prediction('sfm_flow', SfmFlow())]
    heads = [_pose_head(bench, seed, full=True, pretrained=False) for seed in bench.seeds]
    table.rows['triangulation, predicted pose'] = [bench.score_prediction(f'triangulation_{head.name}', Triangulation.by(head.network)) for head in heads]
    table.rows['triangulation, true pose'] = [bench.score_prediction('triangulation_true_pose', Triangulation())]
    for model, title in bench.chosen(OTHERS).items():
        table.rows[title] = [bench.score(bench.train(model, seed, **_HOW[model])) for seed in bench.seeds]
    return table


def density(bench: Bench) -> Table:
    """How the error grows as fewer pixels are supervised."""
    table = Table('density', 'Density of supervision', 'Supervised pixels per image, the same at every visit.', abscissa_title='supervised pixels per image', is_logarithmic=True)
    all_pixels = bench.pixels
    for model, title in _with_dispnet(bench).items():
        for count, text in DENSITIES.items():
            if count not in ENDS and (title != OURS or bench.densities and count not in bench.densities):
                continue
            row = f'{title}, {text}'
            name = model if count == 1 else f'{model}_{text}'
            table.rows[row] = [bench.score(bench.train(name, seed, model=model, supervised_pixels=count)) for seed in bench.seeds]
            table.curves.setdefault(title, []).append(row)
            table.abscissa[row] = count or all_pixels
        one, dense = (table.mean(f'{title}, {DENSITIES[count]}', 'abs_rel') for count in (1, 0))
        table.note += f' {title}: Abs-Rel {100 * (one / dense - 1):+.1f} % from dense to one pixel.'
    return table


def intrinsics(bench: Bench) -> Table:
    """Focal lengths and principal points that differ from pair to pair, in training and test, against fixed ones of the same mean."""
    magnify = 1 / (1 - SPREAD)
    table = Table('intrinsics', 'Varying intrinsics', f'Focal length and principal point of each pair and axis fixed, or within +-{100 * SPREAD:.0f} %, of {magnify:g} times the data\'s.')
    for text, zoom in (('fixed', 0.0), ('varying', SPREAD)):
        table.rows[f'{OURS}, {text}'] = [bench.score(bench.train(f'intrinsics_{text}', seed, magnify=magnify, zoom=zoom, shift=zoom)) for seed in bench.seeds]
    fixed, varying = (table.mean(row, 'abs_rel') for row in table.rows)
    table.note += f' Abs-Rel {100 * (varying / fixed - 1):+.1f} %.'
    return table


def ablations(bench: Bench) -> Table:
    """Global-Local without each of its parts."""
    table = Table('ablations', 'Ablations', 'Global-Local with one part left out at a time.')
    table.rows['full'] = [bench.score(bench.train('global_local', seed)) for seed in bench.seeds]
    for title, key in ABLATIONS.items():
        table.rows[title] = [bench.score(bench.train(f'without_{key}', seed, model_config={key: False})) for seed in bench.seeds]
    return table


def pose(bench: Bench) -> Table:
    """What the global parameters know of the motion."""
    table = Table('pose', 'Pose from g', f'A head of two layers of {_HEAD_WIDTH} reads the motion from g; the global module is untrained or the depth network\'s, and fixed or trained as well.')
    for pretrained in (False, True):
        for full in (False, True):
            row = f'{"pretrained" if pretrained else "scratch"}, {"full network" if full else "head only"}'
            table.rows[row] = [bench.score(_pose_head(bench, seed, full, pretrained)) for seed in bench.seeds]
    return table


def flow_tuning(bench: Bench) -> Table:
    """Depth behind a flow network that stays as it is, or is tuned for depth."""
    table = Table('flow_tuning', 'Flow fine-tuning', f'Global-Local behind a PWC-Net of {FLOW_SHARE:g} of its width, which is first trained on the same pairs for as many steps.')
    for text, tune in (('fixed flow', False), ('tuned flow', True)):
        row = table.rows.setdefault(text, [])
        for seed in bench.seeds:
            bench.train('pwc_net', seed, model='pwc_net', model_config={'share': FLOW_SHARE}, objective='flow', best_by='epe')
            config = {'share': FLOW_SHARE, 'tune': tune} | _ours(bench, 'image_pair', 'coordinates', 'constant', 'global_width')
            row.append(bench.score(bench.train(f'{"tuned" if tune else "fixed"}_flow', seed, model='flow_and_depth', model_config=config,
                                               start_from=bench.checkpoint('pwc_net', seed))))
    return table


def flow_error(bench: Bench) -> Table:
    """Depth against the error of the flow that it is made from; nothing is trained for it beyond the main comparison."""
    table = Table('flow_error', 'Error against flow error', 'The error of the test pairs\' flow is scaled; the networks are those of the main comparison.',
                  abscissa_title='mean flow error where visible [px]')
    ends = {share: bench.flow_error(share) for share in FLOW_SHARES}
    trained = {title: [bench.train(model, seed, model=model) for seed in bench.seeds] for model, title in _with_dispnet(bench).items()}
    ways: dict[str, list[tuple[str, Predict]]] = {title: [(one.name, _predict(one)) for one in many] for title, many in trained.items()}
    ways['triangulation, true pose'] = [('triangulation_true_pose', Triangulation())]
    for title, predictions in ways.items():
        for share, error in ends.items():
            row = f'{title}, flow error x {share:g}'
            table.rows[row] = [bench.score_prediction(f'flow_error_{share:g}_{name}', _with_flow(predict, share)) for name, predict in predictions]
            table.curves.setdefault(title, []).append(row)
            table.abscissa[row] = error
    return table


def curves(bench: Bench) -> Table:
    """How every network that was trained here so far, for whatever study, came to where it is."""
    table = Courses('curves', 'Learning curves', f'Validation split. What {LONGER} times the steps would give is an extrapolation: the power of the number of steps that fits the '
                    'last four fifths of the course, as if it had no floor.')
    for seed in bench.seeds:
        bench.train('global_local', seed)
    for label, history in histories(bench.runs).items():
        table.add(label, history)
    return table


def _with_flow(predict: Predict, share: float) -> Predict:
    return lambda pairs: predict(with_flow_error(pairs, share))


STUDIES: dict[str, Callable[[Bench], Table]] = {'main': main_comparison, 'density': density, 'intrinsics': intrinsics, 'ablations': ablations, 'pose': pose,
                                                'flow_tuning': flow_tuning, 'flow_error': flow_error, 'curves': curves}
