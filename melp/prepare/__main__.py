from melp.prepare.folder import main

if __name__ == "__main__":
    main()
