"""The nodes by the names that workflows know them by: ACE++ (loader, canvas, conditioning) and ACE (loader, chat).

Nodes and parameters carry the published names, so that published workflows find them.
"""

from ace.comfyui.chat import ACEChat
from ace.comfyui.conditioning import AcePlusConditioning, AcePlusLoraConditioning
from ace.comfyui.loaders import ACEModelLoader, ACEPlusLoader
from ace.comfyui.processors import AcePlusFFTProcessor, ACEPlusFinish, AcePlusLoraProcessor
from ace.comfyui.video import ACEVideoPrepare

NODE_CLASS_MAPPINGS = {
    "ACEPlusLoader": ACEPlusLoader,
    "ACEPlusFFTLoader": ACEPlusLoader,  # the published name of the same node
    "ACEPlusFFTProcessor": AcePlusFFTProcessor,
    "ACEPlusLoraProcessor": AcePlusLoraProcessor,
    "ACEPlusConditioning": AcePlusConditioning,
    "ACEPlusLoraConditioning": AcePlusLoraConditioning,
    "ACEPlusFinish": ACEPlusFinish,
    "ACEModelLoader": ACEModelLoader,
    "ACEChat": ACEChat,
    "ACEVideoPrepare": ACEVideoPrepare,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ACEPlusLoader": "ACE++ Loader",
    "ACEPlusFFTLoader": "ACE++ FFT Loader",
    "ACEPlusFFTProcessor": "ACE++ FFT Processor",
    "ACEPlusLoraProcessor": "ACE++ LoRA Processor",
    "ACEPlusConditioning": "ACE++ FFT Conditioning",
    "ACEPlusLoraConditioning": "ACE++ LoRA Conditioning",
    "ACEPlusFinish": "ACE++ Finish (cut, size, keep outside the mask)",
    "ACEModelLoader": "ACE Loader",
    "ACEChat": "ACE Chat",
    "ACEVideoPrepare": "ACE Video Prepare (source, mask and references for VACE)",
}
