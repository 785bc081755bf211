"""mmdat's nodes of the MMEngine registry trees; `type='mmdat.X'` finds them from any OpenMMLab library."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_WRAPPERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmdat', locations=['mmdat.visualization'])
MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmdat', locations=['mmdat.backbones', 'mmdat.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=MMENGINE_CONSTRUCTORS, scope='mmdat', locations=['mmdat.optim']
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=MMENGINE_WRAPPERS, scope='mmdat', locations=['mmdat.engine']
)
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope='mmdat', locations=['mmdat.engine'])
