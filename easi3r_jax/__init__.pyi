# The public face: what `import easi3r_jax as e3r` offers. `__init__.py` reads this file, and imports a name when it is
# first used.

__version__: str

from .align import AlignProblem as AlignProblem
from .align import AlignState as AlignState
from .align import adam_steps as adam_steps
from .align import geometry_of as geometry_of
from .align import init_moments as init_moments
from .align import initial_state as initial_state
from .align import make_problem as make_problem
from .align.optimise import optimise as optimise
from .core.config import AlignConfig as AlignConfig
from .core.config import FrameConfig as FrameConfig
from .core.config import PipelineConfig as PipelineConfig
from .core.config import SegmentationConfig as SegmentationConfig
from .core.errors import CheckpointError as CheckpointError
from .core.errors import ConfigError as ConfigError
from .core.errors import InputError as InputError
from .core.errors import OutputError as OutputError
from .core.errors import UserError as UserError
from .core.pairs import make_edges as make_edges
from .core.sharding import data_mesh as data_mesh
from .core.types import Frames as Frames
from .core.types import Geometry as Geometry
from .core.types import Given as Given
from .core.types import KnownCameras as KnownCameras
from .core.types import MotionResidual as MotionResidual
from .core.types import PairPredictions as PairPredictions
from .core.types import Reconstruction as Reconstruction
from .core.types import Scene4D as Scene4D
from .core.types import Segmentation as Segmentation
from .evaluation.ground_truth import load_ground_truth as load_ground_truth
from .evaluation.metrics import GroundTruth as GroundTruth
from .evaluation.metrics import evaluate_scene as evaluate_scene
from .inference.feedforward import reconstruct_stream as reconstruct_stream
from .inference.flow import estimate_flow as estimate_flow
from .inference.pipeline import reconstruct as reconstruct
from .inference.pure import attention_maps as attention_maps
from .inference.pure import attention_statistics as attention_statistics
from .inference.pure import encode_frames as encode_frames
from .inference.pure import motion_masks as motion_masks
from .inference.pure import predict_pairs as predict_pairs
from .inference.windows import reconstruct_windows as reconstruct_windows
from .io.export.pointcloud import CloudOptions as CloudOptions
from .io.results import load_result as load_result
from .io.results import save_result as save_result
from .io.sequences import load_frames as load_frames
from .models.config import DUSt3RConfig as DUSt3RConfig
from .models.dust3r import DUSt3R as DUSt3R
from .models.dust3r import random_model as random_model
from .motion.cues import Evidence as Evidence
from .motion.cues import reads_attention as reads_attention
from .motion.partners import mean_over_partners as mean_over_partners
from .weights.load import load_flow_model as load_flow_model
from .weights.load import load_model as load_model
from .weights.load import on_devices as on_devices
