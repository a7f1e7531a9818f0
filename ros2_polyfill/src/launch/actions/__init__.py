"""What a launch can do."""
from polyfill_names import unprovided

from .arguments import DeclareLaunchArgument
from .basic import EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler, Shutdown, ShutdownAction, TimerAction, UnregisterEventHandler
from .execute_process import ExecuteProcess
from .include import IncludeLaunchDescription
from .scope import (
    AppendEnvironmentVariable, GroupAction, PopEnvironment, PopLaunchConfigurations, PushEnvironment, PushLaunchConfigurations,
    SetEnvironmentVariable, SetLaunchConfiguration, UnsetEnvironmentVariable, UnsetLaunchConfiguration)

__all__ = [
    "AppendEnvironmentVariable", "DeclareLaunchArgument", "EmitEvent", "ExecuteProcess", "GroupAction",
    "IncludeLaunchDescription", "LogInfo", "OpaqueFunction", "PopEnvironment", "PopLaunchConfigurations", "PushEnvironment",
    "PushLaunchConfigurations", "RegisterEventHandler", "SetEnvironmentVariable", "SetLaunchConfiguration", "Shutdown",
    "ShutdownAction", "TimerAction", "UnregisterEventHandler", "UnsetEnvironmentVariable", "UnsetLaunchConfiguration",
]
__getattr__ = unprovided(__name__)
