"""The tabs of the demo's page, a file each. Only here and in `ldm.apps.demo.ui` gradio is imported."""
