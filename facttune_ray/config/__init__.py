"""The settings of a run: sections, layers, rules. Here are the names that other rooms use."""

from facttune_ray.config.contenders import Contender as Contender
from facttune_ray.config.contenders import contenders as contenders
from facttune_ray.config.data import DataConfig as DataConfig
from facttune_ray.config.llm import EndpointConfig as EndpointConfig
from facttune_ray.config.llm import LLMConfig as LLMConfig
from facttune_ray.config.load import conf_dir as conf_dir
from facttune_ray.config.load import load as load
from facttune_ray.config.load import override as override
from facttune_ray.config.sections import Config as Config
from facttune_ray.config.sections import RunConfig as RunConfig
from facttune_ray.config.stages import GroupsConfig as GroupsConfig
from facttune_ray.config.stages import VerdictsConfig as VerdictsConfig
from facttune_ray.config.train import LoraConfig as LoraConfig
from facttune_ray.config.train import SFTConfig as SFTConfig
from facttune_ray.config.train import TrainConfig as TrainConfig
from facttune_ray.config.train import TuneConfig as TuneConfig
