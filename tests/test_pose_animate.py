"""PoseAnimate: every module against a few lines of float64, and whole on both image models."""

from dataclasses import replace

import micro
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_diffusers import write_pipeline

from rainlab.baselines import dual_attention, image_models
from rainlab.baselines import pose_animate as pa
from rainlab.data import pose
from rainlab.method import restyle, schedule

QUICK = pa.Options(steps=4, guidance=2.0, inner=3)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Linear:
    """An image model whose answer is noise, linear in latents, embedding and pose."""

    null = torch.zeros(1, 1, 3)

    def __init__(self, seed=0):
        self.by_word, self.by_pose = normal(3, 4, seed=seed).double(), normal(3, 4, seed=seed + 1).double()
        self.null = Linear.null.double()

    def encode(self, picture):
        return torch.from_numpy(picture[:2, :2, :1].astype(float) / 255).permute(2, 0, 1)[None]

    def features(self, poses):
        return torch.from_numpy(poses[:, 0, 0].astype(float) / 255)

    def decode(self, latents):
        return (latents.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()

    def predict(self, latents, time, embedding, features):
        told = embedding[:, 0] @ self.by_word + features @ self.by_pose
        return 0.1 * latents + told.reshape(-1, 1, 2, 2) * (1 + time / 1000)

    def split(self, latents, answer, time):
        alpha, sigma = (x.double() for x in schedule.alpha_sigma(torch.tensor(time)))
        return (latents - sigma * answer) / alpha.clamp(min=0.1), answer

    def mix(self, clean, noise, time):
        alpha, sigma = (x.double() for x in schedule.alpha_sigma(torch.tensor(time)))
        return alpha * clean + sigma * noise


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_to_source_past_and_self(masked):
    q, k, v = (normal(4, 2, 9, 5, seed=s) for s in range(3))
    masks = (normal(4, 9, seed=3) > 0).float() if masked else None
    weights = (0.7, 0.2, 0.1)
    got = dual_attention.dual_consistency(q, k, v, weights, masks)
    Q, K, V = (x.double().numpy() for x in (q, k, v))
    for i in range(4):
        for head in range(2):
            if i == 0:
                expected = softmax(Q[0, head] @ K[0, head].T / 5**0.5) @ V[0, head]
            else:
                parts = []
                for side in (1, 0):  # the character, the background
                    total = 0
                    for w, j in zip(weights, (0, i - 1, i), strict=True):
                        m = np.ones(9) if masks is None else (masks[j].double().numpy() == side).astype(float)
                        total += (
                            w * softmax(Q[i, head] @ (m[:, None] * K[j, head]).T / 5**0.5) @ (m[:, None] * V[j, head])
                        )
                    parts.append(total)
                own = np.ones(9) if masks is None else masks[i].double().numpy()
                expected = own[:, None] * parts[0] + (1 - own[:, None]) * parts[1]
            np.testing.assert_allclose(got[i, head], expected, atol=1e-5)


def test_masks_are_made_of_what_cross_attention_sees():
    left = torch.zeros(2, 8, 8)
    left[0, :, :4], left[1, 2:6, 2:6] = 1, 1
    fine = left.flatten(1) + 0.05 * normal(2, 64).abs()
    coarse = F.avg_pool2d(left[None], 2)[0].flatten(1)
    masks = dual_attention.seen_masks([fine, coarse, 3 * fine], (8, 8))
    assert torch.equal(masks, left)
    assert torch.equal(dual_attention.resized(masks, 16), (coarse >= 0.5).float()) and torch.equal(
        dual_attention.resized(masks, 64), left.flatten(1)
    )
    with pytest.raises(ValueError, match="masks: got 8×8, expected a whole multiple of a layer of 20 places"):
        dual_attention.resized(masks, 20)


def test_a_layer_is_told_apart_by_the_characters_words():
    q, k = normal(4, 2, 9, 5), normal(4, 2, 7, 5, seed=1)  # two groups of two frames
    look = dual_attention.Look(groups=2)
    look.saw(q, k, slice(2, 4))
    look.saw(q, k[:, :, :1], None)
    words, alone = (x.double().numpy() for x in look.maps)
    Q, K = q[:2].double().numpy(), k[:2].double().numpy()
    scores = Q @ K.transpose(0, 1, 3, 2) / 5**0.5
    np.testing.assert_allclose(words, softmax(scores)[..., 2:4].sum(-1).mean(1), atol=1e-6)
    np.testing.assert_allclose(alone, (1 / (1 + np.exp(-scores[..., 0]))).mean(1), atol=1e-6)


def test_inversion_is_ddim_backwards():
    """Where the answer doesn't depend on the latents, going there and back ends where it began."""
    model = Linear()
    model.predict = lambda latents, time, embedding, features: 0 * latents + 0.3
    picture = micro.pictures(1, size=(2, 2))[0]
    source = model.features(micro.pictures(1, size=(2, 2)))
    options = replace(QUICK, pacm=False)
    made = pa.invert(model, picture, source, torch.ones(1, 1, 3).double(), options)
    assert len(made.latents) == 5 and len(made.embeddings) == 4 and torch.equal(made.latents[0], model.encode(picture))
    back = made.latents[-2]  # the last one is all noise: nothing leads back from there
    for time, after in zip(pa.levels(options)[1:-1], pa.levels(options)[2:], strict=True):
        clean, noise = model.split(back, model.predict(back, time, None, None), time)
        back = model.mix(clean, noise, after)
    torch.testing.assert_close(back, made.latents[0])


def test_pose_aware_inversion_brings_the_picture_back():
    """Reconstruction error under guidance, of a trained embedding for every step and of the prompt's own."""
    small = image_models.Small(micro.model(motion=False, guidance=False))
    picture, condition = micro.pictures(2)
    source, words = small.features(condition[None]), small.prompt(picture)

    def error(options):
        inversion = pa.invert(small, picture, source, words, options)
        at = inversion.latents[-1]
        for number, (time, after) in enumerate(pa.pairwise(pa.levels(options))):
            at = pa.step(small, at, time, after, inversion.embeddings[number], source, options.guidance)
        return float(F.mse_loss(at, inversion.latents[0]).detach())

    several = replace(QUICK, inner=20, rate=0.1)
    assert error(several) < 0.9 * error(replace(several, pacm=False))


def test_algorithm_1():
    """Embeddings of frames: one step of descent each, of latents that were made before it."""
    model, options = Linear(), replace(QUICK, frame_rate=0.05)
    picture, conditions = micro.pictures(1, size=(2, 2))[0], micro.pictures(3, size=(2, 2), seed=1)
    inversion = pa.invert(model, picture, model.features(picture[None]), torch.ones(1, 1, 3).double(), options)
    features = model.features(conditions)
    got = pa.pose_aware(model, inversion, features, options)
    assert len(got) == 4
    for i in range(3):
        at = inversion.latents[-1]
        for number, (time, after) in enumerate(pa.pairwise(pa.levels(options))):
            before = inversion.embeddings[number].clone().requires_grad_()
            pose_of = features[i : i + 1]
            answers = [model.predict(at, time, e, pose_of) for e in (before, model.null)]
            answer = answers[1] + options.guidance * (answers[0] - answers[1])
            made = model.mix(*model.split(at, answer, time), after)
            (slope,) = torch.autograd.grad((made - inversion.latents[-2 - number]).square().mean(), [before])
            step = options.frame_rate * before.detach().norm() * slope / slope.norm()
            torch.testing.assert_close(got[number][i : i + 1], before.detach() - step)
            at = made.detach()
    same = pa.pose_aware(model, inversion, features, replace(options, pacm=False))
    assert all(torch.equal(x, y.expand_as(x)) for x, y in zip(same, inversion.embeddings, strict=True))


@pytest.fixture(scope="module")
def small():
    return image_models.Small(micro.model(motion=False, guidance=False))


def test_looking_changes_nothing_until_it_is_told_to(small):
    """Attention of our own blocks, as it is and through a look without weights."""
    latents, words = normal(3, 4, 8, 6), normal(3, 1, 16, seed=1)
    features = small.features(micro.pictures(3))
    plain = small.predict(latents, 500, words, features)
    with small.looking(look := dual_attention.Look()):
        torch.testing.assert_close(small.predict(latents, 500, words, features), plain)
        assert look.maps and all(x.shape[0] == 3 and (x > 0).all() and (x < 1).all() for x in look.maps)
    with small.looking(dual_attention.Look((0.7, 0.15, 0.15))):
        mixed = small.predict(latents, 500, words, features)
    torch.testing.assert_close(mixed[0], plain[0])  # the source attends to itself
    assert (mixed[1:] - plain[1:]).abs().min(0).values.max() > 1e-4
    torch.testing.assert_close(small.predict(latents, 500, words, features), plain)


@pytest.mark.parametrize("module", ["pacm", "dcam", "mgdm"])
def test_every_module_can_be_left_out(small, module):
    picture, source, *poses = micro.pictures(5)
    given = picture, source, np.stack(poses), small.prompt(picture)
    whole, masks = pa.animate(small, *given, QUICK)
    assert (
        whole.shape == (3, 32, 24, 3) and whole.dtype == np.uint8 and masks.shape == (3, 8, 6) and masks.dtype == bool
    )
    without, no_masks = pa.animate(small, *given, replace(QUICK, **{module: False}))
    assert (without != whole).any() and (no_masks is None) == (module == "mgdm")
    again, _ = pa.animate(small, *given, QUICK)
    np.testing.assert_array_equal(again, whole)


def test_frames_touch_each_other_through_dual_consistency_alone(small):
    picture, source, *poses = micro.pictures(5)
    words = small.prompt(picture)
    other = np.stack([255 - poses[0], *poses[1:]])
    for dcam in (False, True):
        options = replace(QUICK, dcam=dcam, mgdm=False, pacm=False)
        a, b = (pa.animate(small, picture, source, np.stack(x), words, options)[0] for x in (poses, other))
        assert (a[0] != b[0]).any() and ((a[1] != b[1]).any() == dcam)  # the frame behind sees the one before


def test_a_mask_of_the_picture_takes_the_place_of_what_is_seen(small):
    picture, source, *poses = micro.pictures(4)
    given = picture, source, np.stack(poses), small.prompt(picture), QUICK
    mask = np.zeros((32, 24), bool)
    mask[:, :12] = True
    assert (pa.animate(small, *given, mask=mask)[0] != pa.animate(small, *given, mask=~mask)[0]).any()


def test_masks_are_carried_from_the_picture_by_attention(small):
    """Every place of a frame has the share of its attention to the source that falls on the character there."""
    q, k, v = (normal(4, 2, 12, 5, seed=s) for s in range(3))
    mask = torch.zeros(1, 4, 3)
    mask[:, 1:3] = 1
    look = dual_attention.Look((0.7, 0.2, 0.1), groups=2, source=mask)
    look.attention(q, k, v)
    Q, K = (x.double().numpy() for x in (q, k))
    expected = [softmax(Q[i] @ K[0].transpose(0, 2, 1) / 5**0.5) @ mask.flatten().double().numpy() for i in (0, 1)]
    np.testing.assert_allclose(look.carried[0], np.mean(expected, 1), atol=1e-6)

    picture, source, *poses = micro.pictures(4)
    given = picture, source, np.stack(poses), small.prompt(picture)
    options, whole = replace(QUICK, carried=True), np.ones((32, 24), bool)
    assert (
        pa.animate(small, *given, options, whole)[1].all() and not pa.animate(small, *given, options, ~whole)[1].any()
    )
    for missing in ((options, None), (replace(options, dcam=False), whole)):
        with pytest.raises(ValueError, match="carried: got no"):
            pa.animate(small, *given, *missing)


def test_poses_come_from_the_source_and_stand_where_it_stands():
    source, targets = normal(18, 3).abs() + 0.5, normal(5, 18, 3, seed=1).abs() + 0.5
    targets[2, 7, 2] = 0.0
    got = pa.transition(source, targets, between=3)
    assert got.shape == (8, 18, 3)
    neck, hips = pose.POINTS.index("neck"), [pose.POINTS.index(name) for name in ("Rhip", "Lhip")]
    long = [np.linalg.norm((x[hips, :2].mean(0) - x[neck, :2]).numpy()) for x in (source, targets[0])]
    aligned = source[neck, :2] + (targets[..., :2] - targets[0, neck, :2]) * long[0] / long[1]
    torch.testing.assert_close(got[3:, :, :2], aligned)
    torch.testing.assert_close(got[1, :, :2], (source[:, :2] + aligned[0]) / 2)  # the middle one of three
    assert got[5, 7, 2] == 0 and torch.equal(got[0, :, 2], torch.minimum(source[:, 2], targets[0, :, 2]))
    assert len(pa.transition(source, targets, between=0)) == 5
    with pytest.raises(ValueError, match="first target: got no neck or hips"):
        pa.transition(source, targets * torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="between: got -1"):
        pa.transition(source, targets, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "got 0 steps"),
        ({"weights": (0.7, 0.2, 0.2)}, "expected three that are not negative and add up to 1"),
        ({"weights": (1.2, -0.1, -0.1)}, "expected three that are not negative"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        pa.Options(**change)


def test_bad_pictures(small):
    picture, source, pose_of = micro.pictures(3)
    words = small.prompt(picture)
    with pytest.raises(ValueError, match=r"poses: got uint8 \(32, 24, 3\), expected .* \(f, h, w, 3\)"):
        pa.animate(small, picture, source, pose_of, words)
    with pytest.raises(ValueError, match="source: got float64"):
        pa.animate(small, picture, source / 255, pose_of[None], words)
    for mask in (np.zeros((24, 32), bool), np.zeros((32, 24))):
        with pytest.raises(ValueError, match=r"mask: got .*, expected bool \(32, 24\) like the picture"):
            pa.animate(small, picture, source, pose_of[None], words, mask=mask)
    with pytest.raises(ValueError, match="got a distilled network, expected that of stage 1"):
        image_models.Small(micro.model(motion=False))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folders = write_pipeline(tmp_path_factory.mktemp("weights"))
    return image_models.Published(restyle.load(*folders, kind="openpose"))


def test_published_networks_step_as_diffusers_does(published):
    """Guided DDIM of Stable Diffusion with a ControlNet, by our few lines and by diffusers' scheduler."""
    scheduler = type(published.pipe.scheduler).from_config(published.pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(5)
    latents, words = normal(2, 4, 8, 8), published.prompt("a b")
    features = published.features(micro.pictures(2, size=(64, 64)))
    times = [*scheduler.timesteps.tolist(), -1]
    ours = theirs = latents
    with torch.no_grad():
        for time, after in pa.pairwise(times):
            ours = pa.step(published, ours, time, after, words, features, 7.5)
            both = torch.cat([words.expand(2, -1, -1), published.null.expand(2, -1, -1)])
            given = torch.cat([theirs] * 2), torch.tensor(time)
            down, middle = published.pipe.controlnet(
                *given, both, controlnet_cond=torch.cat([features] * 2), return_dict=False
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            answer, null = published.pipe.unet(*given, both, **residuals).sample.chunk(2)
            theirs = scheduler.step(null + 7.5 * (answer - null), time, theirs).prev_sample
            if after >= 0:
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_published_attention_is_as_before_until_it_is_told_otherwise(published):
    latents, words = normal(3, 4, 8, 8), published.prompt("a b").expand(3, -1, -1)
    features = published.features(micro.pictures(3, size=(64, 64)))
    with torch.no_grad():
        plain = published.predict(latents, 500, words, features)
        with published.looking(look := dual_attention.Look()):
            torch.testing.assert_close(published.predict(latents, 500, words, features), plain, rtol=1e-4, atol=1e-5)
        assert look.maps and {x.shape[1] for x in look.maps} <= {64, 16}
        with published.looking(dual_attention.Look((0.7, 0.15, 0.15))):
            mixed = published.predict(latents, 500, words, features)
        torch.testing.assert_close(mixed[0], plain[0], rtol=1e-4, atol=1e-5)
        assert (mixed[1:] - plain[1:]).abs().max() > 1e-5
        torch.testing.assert_close(published.predict(latents, 500, words, features), plain)


def test_networks_in_which_gradients_vanish_are_refused(tmp_path):
    pipe = restyle.load(*write_pipeline(tmp_path), kind="openpose", dtype=torch.float16)
    with pytest.raises(ValueError, match="got networks in fp16, expected fp32 or bf16"):
        image_models.Published(pipe)


def test_published_networks_animate(published):
    picture, source, *poses = micro.pictures(4, size=(64, 64))
    given = picture, source, np.stack(poses), published.prompt("a b")
    frames, masks = pa.animate(published, *given, replace(QUICK, steps=3, inner=2))
    assert frames.shape == (2, 64, 64, 3) and masks.shape == (2, 8, 8)
