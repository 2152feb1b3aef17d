from megatron_urpo.cli import main

main()
