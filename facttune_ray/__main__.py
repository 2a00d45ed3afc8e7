from facttune_ray.cli import main

raise SystemExit(main())
