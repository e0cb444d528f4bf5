"""Easi3R in JAX: 4D reconstruction of moving scenes from a static-scene network, without training.

    import easi3r_jax as e3r

    model = e3r.load_model("embedded")
    frames = e3r.load_frames("clip.mp4", e3r.FrameConfig.for_model(model, fps=8))
    result = e3r.reconstruct(model, frames)
    e3r.save_result("results/clip", result)

All public names are in `__init__.pyi`, and are imported when they are first used: the import itself takes no time and
starts no backend. Rooms: `core`, `models`, `motion`, `align`, `weights`, `inference`, `io`, `viewer`, `synthetic`,
`training`, `evaluation`, `apps`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
