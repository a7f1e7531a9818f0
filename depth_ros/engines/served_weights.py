"""Which weights others are to have: the learned ones, as far as they are trusted, or those that learning began with while these do better on what the robot sees."""

from __future__ import annotations

from depth_ros.engines import online_weights
from depth_ros.engines.online_settings import OnlineLearnerConfig, Progress
from depth_ros.engines.replay_buffer import Observation
from depth_ros.engines.update_guard import Checked, does_harm, helps
from depth_ros.models.depth_model import DepthModel


_STEP = 0.1             # by which weights are trusted more without having learned more


class ServedWeights:
    """What is handed out of a frozen network and of what was learned from it. `progress.trusted` and `progress.serves_frozen` tell, and survive a restart."""

    def __init__(self, frozen: Checked, learned: Checked, config: OnlineLearnerConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self._frozen, self._learned = frozen, learned
        self._left_at = -1      # serial number of the newest observation when the learned weights had to go
        self._mix()

    @property
    def network(self) -> DepthModel:
        """To be handed out."""
        return (self._frozen if self.progress.serves_frozen else self._offered).network

    def take(self, learned: Checked) -> None:
        """Serve these from now on, as far as enough places were seen: what a few taught may not hold at the next one."""
        self._learned = learned
        self.progress.trusted = max(self.progress.trusted, self._share())
        self._mix()

    def _share(self) -> float:
        return min(1.0, self.progress.observed / self.config.trusted_after)

    def _mix(self) -> None:
        share = self.progress.trusted
        self._offered = self._learned if share == 1 else Checked(online_weights.between(self._frozen.network, self._learned.network, share))

    def ripen(self) -> bool:
        """Trust the learned weights more, if enough came since; whether that is to be handed out."""
        share = self._share()
        if share < min(1.0, self.progress.trusted + _STEP) or self.progress.trusted == 1:
            return False
        self.take(self._learned)
        return not self.progress.serves_frozen

    def leave(self, newest: list[Observation], distrusts: bool) -> str:
        """Serve the frozen weights if the others do harm on the newest pairs, or the hits that taught them are not trusted; why, or ''."""
        if self.progress.serves_frozen:
            return ''
        why = 'what the hits taught is not trusted' if distrusts else does_harm(self._offered, self._frozen, newest, self.config.watched, self.config.harm)
        if why:
            self.progress.serves_frozen = True
            self._left_at = newest[-1].serial if newest else -1
        return why

    def come_back(self, newest: list[Observation], distrusts: bool) -> bool:
        """Serve the learned weights again if they help; whether they do so from now on."""
        if not self.progress.serves_frozen or distrusts:
            return False
        if not helps(self._offered, self._frozen, newest, self.config.watched, self.config.harm) or not self._help_since(newest):
            return False
        self.progress.serves_frozen = False
        return True

    def _help_since(self, newest: list[Observation]) -> bool:
        """Whether they do no harm on what came since they had to go, and enough did: what was seen before speaks for another place."""
        since = [one for one in newest if one.serial > self._left_at]
        return len(since) >= self.config.watched and not does_harm(self._offered, self._frozen, since, self.config.watched, 0.0)
