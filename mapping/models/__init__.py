"""Whole architectures."""

from mapping.models.autoencoder import Autoencoder as Autoencoder
from mapping.models.cnn import CNN as CNN
from mapping.models.elbo import ELBO as ELBO
from mapping.models.encoder import TransformerEncoder as TransformerEncoder
from mapping.models.feed_forward import FeedForward as FeedForward
from mapping.models.gan import Gan as Gan
from mapping.models.gan_step import GanStep as GanStep
from mapping.models.generate import generate as generate
from mapping.models.gpt import GPT as GPT
from mapping.models.in_batch import InBatchSoftmax as InBatchSoftmax
from mapping.models.mlp import MLP as MLP
from mapping.models.mobilenet import MobileNet as MobileNet
from mapping.models.recurrent import RecurrentClassifier as RecurrentClassifier
from mapping.models.resnet import ResNet as ResNet
from mapping.models.sampling import sample_logits as sample_logits
from mapping.models.sampling import truncate_logits as truncate_logits
from mapping.models.seq2seq import Seq2Seq as Seq2Seq
from mapping.models.seq2seq import translate as translate
from mapping.models.transformer import Places as Places
from mapping.models.transformer_block import Stack as Stack
from mapping.models.transformer_block import TransformerBlock as TransformerBlock
from mapping.models.two_tower import Tower as Tower
from mapping.models.two_tower import TwoTower as TwoTower
from mapping.models.unet import UNet as UNet
from mapping.models.vae import VAE as VAE
from mapping.models.vit import ViT as ViT
